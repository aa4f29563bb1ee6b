"""The main job: from pages to a tuned, evaluated, promoted model, ten calls from top to bottom.

Each call brings one stage up to date: DVC says whether it is fresh, restored from the cache, or has to run.
"""

from __future__ import annotations

from prefect import flow

from apps.report import write_report
from tasks import summary
from tasks.form import HERE, Folder, Forced, Preset, Settings, Stages
from tasks.session import open_session
from tasks.stages import acquire, align, clean, collect, evaluate, pretrain, promote, reward, sft, tokenize


@flow(name="build", flow_run_name=summary.run_name, validate_parameters=False)
def build(
    workspace: Folder = HERE, preset: Preset = None, settings: Settings = None, stages: Stages = (), force: Forced = ()
) -> summary.Summary:
    """Build the model of a workspace; a preset or settings make the run an experiment beside it."""
    with open_session(workspace, stages, force, preset=preset, settings=settings) as run:
        raw = acquire(run)
        corpus = clean(run, raw)
        shards = tokenize(run, corpus)

        base = pretrain(run, shards)
        chat = sft(run, base, shards)

        votes = collect(run, chat, corpus)
        judge = reward(run, chat, votes)
        aligned = align(run, chat, judge, votes)

        scores = evaluate(run, base, chat, aligned, judge, shards, corpus)
        verdict = promote(run, scores)

        page = write_report(run.space, run.states)
        return summary.tell(run, verdict, page)

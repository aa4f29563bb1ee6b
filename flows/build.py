"""The main job: from pages to a tuned, evaluated, promoted model, ten calls from top to bottom.

Each call brings one stage up to date: DVC says whether it is fresh, restored from the cache, or has to run.
"""

from __future__ import annotations

from pathlib import Path

from prefect import flow

from apps.report import write_report
from tasks import summary
from tasks.session import open_session
from tasks.stages import acquire, align, clean, collect, evaluate, pretrain, promote, reward, sft, tokenize


@flow(name="build", flow_run_name=summary.run_name, validate_parameters=False)
def build(workspace: Path, stages: tuple[str, ...] = (), force: tuple[str, ...] = ()) -> summary.Summary:
    """Build the model of `workspace`; only `stages` and what they need, if any are named."""
    with open_session(workspace, stages, force) as run:
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

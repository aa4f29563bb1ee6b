"""The ladder of small runs: each rung is an experiment, `runs/ladder-.../`, with its own record and MLflow run.

So a ladder that was stopped goes on where it stood: rungs that ended are fresh, the one that was cut off resumes from
its last checkpoint. What it teaches is kept in scaling/law.json, for `groundup plan` and for predictions.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from llm_core import artifacts
from llm_core.contract import BadInput
from llm_core.data.shards import Shards
from llm_core.scaling import ladder as parts
from llm_core.scaling.laws import write_law
from llm_core.scaling.prediction import distinct_tokens
from llm_core.sealed import read_sealed, write_sealed
from llm_core.settings.pretrain import PretrainConfig
from tasks import experiments, params, tracking
from tasks.planning import LAW, this_machine
from tasks.session import Session, open_session
from tasks.stages import TRAINING
from tasks.workspace import Workspace

MADE_BEFORE = ("acquire", "clean", "tokenize")


@task(name="design", cache_policy=NO_CACHE)  # type: ignore[untyped-decorator]
def design(session: Session, shards: Path, minutes: float) -> parts.Ladder:
    """A ladder on the workspace's shards that trains in about `minutes` on this machine. Raises `BadInput`.

    The same question gets the same ladder again, so that one that was stopped goes on, at whatever speed.
    """
    data, config = Shards.open(shards), _pretrain(session.space)
    shape = config.model.build(data.vocab_size)
    if minutes <= 0:
        raise BadInput(f"scaling: minutes = {minutes} must be above 0")
    tokens = distinct_tokens(data.facts, len(data.tokens("train")))
    size: dict[str, Any] = {"context": shape.context, "architecture": shape.architecture, "lanes": config.passes}
    asked = {"shards": artifacts.digest(shards), "minutes": minutes, **size}
    kept = session.space.root / ".groundup" / "ladder.json"
    if kept.is_file() and (before := read_sealed(kept))["asked"] == asked:
        return parts.design(tokens, data.vocab_size, flops=before["flops"], **size)
    device = this_machine(data.vocab_size, shape.context, seconds=10.0)
    found = parts.within(tokens, data.vocab_size, device=device, seconds=60 * minutes, **size)
    write_sealed(kept, {"asked": asked, "flops": found.flops})
    told = f"{len(found.rungs)} runs and one held out, {found.seconds(device) / 60:.1f} minutes of training"
    session.display.console.print(f"  ladder    {told}", highlight=False)
    return found


def climb(session: Session, ladder: parts.Ladder) -> dict[str, float]:
    """Run every rung that has not been run; held-out loss in nats per token by the rung's name."""
    return {rung.name: run_rung(session, rung) for rung in (*ladder.rungs, ladder.held_out)}


@task(name="rung", task_run_name="rung {rung.name}", cache_policy=NO_CACHE, **TRAINING)  # type: ignore[untyped-decorator]
def run_rung(session: Session, rung: parts.Rung) -> float:
    """Pretrain one rung in its own workspace, unless it stands there already; its held-out loss."""
    passes = _pretrain(session.space).passes
    chosen = params.overlay(session.space.params, rung.settings(passes))
    space = experiments.create(session.space.project, f"ladder-{rung.name}", chosen)
    _hand_over(space)
    with open_session(space.root, ("pretrain",)) as run:
        for verb in (*MADE_BEFORE, "pretrain"):
            run.perform(verb)
    report = space.read_report("pretrain") or {}
    if "loss" not in report.get("metrics", {}):
        raise BadInput("scaling: the shards have no held-out pages to measure a loss on; raise clean.validation_share")
    return float(report["metrics"]["loss"])


def _hand_over(space: Workspace) -> None:
    """Link the data that the workspace's lock names from the cache; what is not there is made by its stage."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    if not space.product("shards").exists() and (space.root / "dvc.lock").is_file():
        with contextlib.chdir(space.root), Repo(str(space.root)) as repo, contextlib.suppress(DvcException):
            repo.checkout(targets=list(MADE_BEFORE))


@task(name="learn", cache_policy=NO_CACHE)  # type: ignore[untyped-decorator]
def learn(session: Session, ladder: parts.Ladder, losses: dict[str, float], shards: Path) -> parts.Study:
    """Fit the law and keep it in scaling/law.json, with the digest of the shards that it is of."""
    data = Shards.open(shards)
    tokens = distinct_tokens(data.facts, len(data.tokens("train")))
    source = f"runs on {tokens:,} training tokens, vocabulary {data.vocab_size:,}"
    study = parts.learn(ladder, losses, name="own ladder", source=source)
    facts = study.facts() | {"shards": artifacts.digest(shards), "vocab_size": data.vocab_size, "tokens": tokens}
    write_law(session.space.project / LAW, study.law, facts)
    return study


def tell(session: Session, study: parts.Study, page: Path) -> Path:
    """Leave the study on the Prefect run's page and as a run in MLflow's `groundup/scaling`; the page's path.

    A tracker that is down costs this run's entry only.
    """
    from prefect.artifacts import create_markdown_artifact

    law, error = study.law, study.error
    found = f"L(N, D) = {law.E:.3f} + {law.A:.4g} / N^{law.alpha:.3f} + {law.B:.4g} / D^{law.beta:.3f}"
    check = f"held-out run: predicted {study.predicted:.3f}, actual {study.actual:.3f} ({error:+.1%})"
    create_markdown_artifact(f"{found}\n\n{check}\n\n<{page.as_uri()}>", key="scaling", description="The fitted law")
    session.display.console.print(f"  law       {found}\n  law       {check}\n  page      {page}", highlight=False)
    uri = tracking.tracking_uri(session.space.project)
    if uri is not None:
        try:
            _mlflow_run(uri, session, study, page)
        except Exception as failure:  # a tracker's failure must not lose a ladder
            session.display.console.print(f"MLflow did not take the ladder's summary: {failure}", markup=False)
    return page


def _mlflow_run(uri: str, session: Session, study: parts.Study, page: Path) -> None:
    client = tracking.client(uri)
    tags = {"workspace": session.space.name, "build": os.environ.get("GROUNDUP_BUILD", "")}
    run = client.create_run(tracking.experiment_id(client, "scaling"), tags=tags, run_name=session.space.name).info
    law = study.law
    figures: dict[str, Any] = {"E": law.E, "A": law.A, "B": law.B, "alpha": law.alpha, "beta": law.beta}
    figures |= {"residual": study.fit.residual, "held_out/predicted": study.predicted, "held_out/actual": study.actual}
    for name, value in figures.items():
        client.log_metric(run.run_id, name, value)
    client.log_text(run.run_id, artifacts.dump_json(study.facts()).decode(), "study.json")
    client.log_artifact(run.run_id, str(page))
    client.set_terminated(run.run_id)


def _pretrain(space: Workspace) -> PretrainConfig:
    config = space.config("pretrain")
    assert isinstance(config, PretrainConfig)
    return config

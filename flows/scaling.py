"""A ladder of small runs on the workspace's own shards: the law that they fit, and the plan that follows.

Each rung is an experiment of its own with its MLflow run; a ladder that was stopped goes on where it stood.
"""

from __future__ import annotations

from pathlib import Path

from prefect import flow

from apps.scaling import write_study
from tasks import ladder, planning, summary
from tasks.form import HERE, Folder
from tasks.session import open_session
from tasks.stages import acquire, clean, tokenize


@flow(name="scaling", flow_run_name=summary.run_name, validate_parameters=False)
def scaling(workspace: Folder = HERE, minutes: float = 5.0, plan_hours: float = 1.0) -> Path:
    """Fit a scaling law in about `minutes` of training, and plan `plan_hours` by it; the path of the page."""
    with open_session(workspace, ("tokenize",)) as run:
        raw = acquire(run)
        corpus = clean(run, raw)
        shards = tokenize(run, corpus)

        rungs = ladder.design(run, shards, minutes)
        losses = ladder.climb(run, rungs)
        study = ladder.learn(run, rungs, losses, shards)

        plan = planning.plan_hours(run.space.project, plan_hours)
        page = write_study(run.space, study, plan)
        return ladder.tell(run, study, page)

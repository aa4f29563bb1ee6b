"""What a finished run tells: an artifact on the Prefect run's page, a run in MLflow, and the links that are printed."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_core import artifacts
from llm_core.release.card import markdown
from tasks import params, tracking
from tasks.promote import Promotion
from tasks.secrets import shown
from tasks.session import Session

RESULTS = (
    ("pretrain", "bits_per_byte"),
    ("evaluate", "chat_greedy_accuracy"),
    ("evaluate", "chat_sampled_accuracy"),
    ("evaluate", "aligned_greedy_accuracy"),
    ("evaluate", "aligned_sampled_accuracy"),
    ("evaluate", "chat_choice_accuracy"),
)
"""Figures that are printed at the end of a run: stage and name."""


DATA_CHANGED = "groundup.data.changed"
"""Event by which a refresh that Prefect started says that the raw data is other than before."""


@dataclass(frozen=True)
class Summary:
    """Stage outcomes, what the models reached, the gate's word, and where to look."""

    states: Mapping[str, str]
    results: Mapping[str, float]
    stage_seconds: float
    peak_rss_mb: float
    promotion: Promotion
    links: Mapping[str, str]


def run_name() -> str:
    """Name of the Prefect run: the workspace, or what the experiment changes, and the time of day."""
    from prefect.runtime import flow_run

    workspace = Path(flow_run.parameters.get("workspace", ".")).resolve()
    preset, settings = flow_run.parameters.get("preset"), flow_run.parameters.get("settings") or {}
    changes = [preset or "", *params.assignments(settings)]
    name = workspace.name if workspace.parent.name == "runs" else " ".join(filter(None, changes))[:80] or "main"
    return f"{name} {time.strftime('%H:%M:%S')}"


@dataclass(frozen=True)
class Changes:
    """What a refresh found: whether the raw data is other than before, and acquire's figures."""

    changed: bool
    counts: Mapping[str, float]

    def sentence(self) -> str:
        """The finding in words."""
        names = ("new", "changed", "gone", "unchanged")
        told = ", ".join(f"{self.counts[name]:,.0f} {name}" for name in names if name in self.counts)
        return f"the raw data {'changed' if self.changed else 'is unchanged'}" + (f": {told} pages" if told else "")


def changes(session: Session) -> Changes:
    """Compare the raw data with what it was when the run began, and leave the finding on the Prefect run's page."""
    from prefect.artifacts import create_markdown_artifact
    from prefect.events import emit_event
    from prefect.runtime import deployment

    report = session.space.read_report("acquire") or {}
    now = artifacts.digest(session.space.product("raw"))
    found = Changes(now != session.raw_before, report.get("metrics", {}))
    rows = report.get("tables", {}).get("refresh", [])
    lines = [found.sentence(), "", *(f"- {markdown(' '.join(map(str, row.values())))}" for row in rows[:200])]
    create_markdown_artifact("\n".join(lines), key="changes", description="What the refresh found")
    if found.changed and deployment.id:  # a refresh by hand goes on to the build itself
        emit_event(DATA_CHANGED, resource={"prefect.resource.id": f"groundup.workspace.{session.space.name}"})
    return found


def tell(session: Session, promotion: Promotion, page: Path) -> Summary:
    """Sum up a run and leave the summary where people look for it."""
    reports = {verb: session.space.read_report(verb) or {} for verb in session.outcomes}
    ran = [verb for verb, outcome in session.outcomes.items() if outcome.state == "ran"]
    summary = Summary(
        states=session.states,
        results={
            name: reports[verb]["metrics"][name]
            for verb, name in RESULTS
            if name in reports.get(verb, {}).get("metrics", {})
        },
        stage_seconds=sum(reports[verb]["run"]["seconds"] for verb in ran),
        peak_rss_mb=max([reports[verb]["run"]["peak_rss_mb"] for verb in ran], default=0.0),
        promotion=promotion,
        links=_links(session, page),
    )
    _prefect_artifact(summary, reports)
    if ran or promotion.state == "ran":
        _mlflow_run(session, summary, reports)
    return summary


def _links(session: Session, page: Path) -> dict[str, str]:
    from prefect.runtime import flow_run
    from prefect.settings import PREFECT_UI_URL

    links = {"report": page.as_uri()}
    ui = PREFECT_UI_URL.value() or os.environ.get("PREFECT_API_URL", "").removesuffix("/api")
    if ui and flow_run.id:
        links["Prefect run"] = f"{shown(ui)}/runs/flow-run/{flow_run.id}"
    uri = tracking.tracking_uri(session.space.project)
    experiment = _experiment_of("pretrain", uri)
    if uri and experiment:
        links["MLflow charts"] = tracking.charts_link(uri, experiment)
    return links


def _experiment_of(stage: str, uri: str | None) -> str | None:
    """The id of a stage's experiment, if the tracker has one."""
    name = tracking.EXPERIMENT.format(stage)
    found = tracking.ask(uri, "experiments/get-by-name", experiment_name=name) if uri else None
    return str(found["experiment"]["experiment_id"]) if found else None


def _prefect_artifact(summary: Summary, reports: Mapping[str, Any]) -> None:
    from prefect.artifacts import create_markdown_artifact

    lines = ["| stage | state | seconds | MLflow run |", "| --- | --- | --- | --- |"]
    for verb, state in summary.states.items():
        run = reports[verb].get("run", {})
        lines.append(f"| {verb} | {state} | {run.get('seconds', '')} | {run.get('mlflow_run_id') or ''} |")
    lines += ["", f"**Gate:** {markdown(summary.promotion.reason)}", ""]
    lines += [f"- {name}: <{link}>" for name, link in summary.links.items()]
    create_markdown_artifact("\n".join(lines), key="summary", description="What became of each stage")


def _mlflow_run(session: Session, summary: Summary, reports: Mapping[str, Any]) -> None:
    """One run in `groundup/build` that joins the stages' runs; a tracker that is down only costs this page."""
    uri = tracking.tracking_uri(session.space.project)
    if uri is None:
        return
    try:
        client = tracking.client(uri)
        from mlflow.entities import Metric

        now_ms = int(time.time() * 1000)
        tags = {"workspace": session.space.name, "build": os.environ.get("GROUNDUP_BUILD", "")}
        tags |= {f"run.{verb}": reports[verb].get("run", {}).get("mlflow_run_id") or "" for verb in summary.states}
        tags |= {f"state.{verb}": state for verb, state in summary.states.items()}
        run = client.create_run(tracking.experiment_id(client, "build"), tags=tags, run_name=session.space.name)
        found = [(f"{verb}/{name}", value) for verb, report in reports.items()
                 for name, value in report.get("metrics", {}).items()]  # fmt: skip
        client.log_batch(run.info.run_id, metrics=[Metric(name, value, now_ms, 0) for name, value in found][:1000])
        client.log_text(run.info.run_id, artifacts.dump_json(reports).decode(), "reports.json")
        client.set_terminated(run.info.run_id)
    except Exception as error:
        session.display.console.print(f"MLflow did not take the run's summary: {error}", markup=False)

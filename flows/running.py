"""What the commands do: the bodies behind `groundup run`, `status`, `generate` and the rest."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from deployments import servers
from llm_core.contract import BadInput
from llm_core.pipeline import PIPELINE, stage
from tasks import experiments, tracking
from tasks.params import CLUSTER_VARIABLE
from tasks.summary import Summary
from tasks.workspace import Workspace


def run(
    project: Path,
    stages: list[str],
    preset: str | None,
    assignments: list[str],
    force: list[str],
    *,
    name: str | None = None,
    cluster: str | None = None,
    as_json: bool = False,
) -> int:
    """Check everything that was said, start the servers, run the flow, print where to look. The exit code."""
    began = time.monotonic()
    for verb in (*stages, *force):
        stage(verb)
    space = Workspace.at(project)
    if cluster:
        os.environ[CLUSTER_VARIABLE] = cluster  # stages inherit it; params.yaml stays: nothing is stale
        space.config("clean")
    space.configs()
    if preset or assignments or name:
        chosen = experiments.overrides(project, preset, assignments)
        space = experiments.create(project, name or experiments.name_for(preset, assignments, chosen), chosen)
    _start_servers(project)
    from flows.build import build

    _tell(space, build(space.root, stages=tuple(stages), force=tuple(force)), time.monotonic() - began, as_json)
    return 0


def feedback(project: Path, *, as_json: bool = False) -> int:
    """Run the feedback flow: what people voted becomes a candidate that the gate judges. The exit code."""
    began = time.monotonic()
    space = Workspace.at(project)
    space.configs()
    _start_servers(project)
    from flows.feedback import feedback as feedback_flow

    _tell(space, feedback_flow(space.root), time.monotonic() - began, as_json)
    return 0


def _tell(space: Workspace, summary: Summary, seconds: float, as_json: bool) -> None:
    if as_json:
        print(json.dumps(asdict(summary) | {"seconds": round(seconds, 2)}, indent=2))
        return
    print(f"\n{space.name}: {', '.join(f'{verb} {state}' for verb, state in summary.states.items())}")
    print(
        f"{seconds:.1f} s in all: {summary.stage_seconds:.1f} s in stages, "
        f"{seconds - summary.stage_seconds:.1f} s around them; largest process {summary.peak_rss_mb:,.0f} MB"
    )
    print("  ".join(f"{name} {value:.3f}" for name, value in summary.results.items()))
    print(f"gate: {summary.promotion.reason}")
    print(f"champion: {summary.promotion.champion or 'none'}")
    for label, link in summary.links.items():
        print(f"{label}: {link}")


def refresh(project: Path, *, build: bool, as_json: bool) -> int:
    """Run the refresh flow, and the build if the data changed. The exit code."""
    Workspace.at(project).configs()
    _start_servers(project)
    from flows.refresh import refresh as refresh_flow

    changes = refresh_flow(project)
    print(changes.sentence(), file=sys.stderr if as_json else sys.stdout)
    if changes.changed and build:
        return run(project, [], None, [], [], as_json=as_json)
    if as_json:
        print(json.dumps(asdict(changes), indent=2))
    return 0


def scaling(project: Path, minutes: float, plan_hours: float) -> Path:
    """Run the ladder's flow; the path of its page."""
    Workspace.at(project).configs()
    _start_servers(project)
    from flows.scaling import scaling as scaling_flow

    page: Path = scaling_flow(project, minutes, plan_hours)
    return page


def _start_servers(project: Path) -> None:
    os.environ.setdefault("PREFECT_SERVER_ALLOW_EPHEMERAL_MODE", "false")
    # The terminal shows our own lines; Prefect's log lines go to its server, where the run's page shows them.
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    servers.ensure(project)


def status_rows(space: Workspace) -> list[dict[str, Any]]:
    """A row a stage: state, why, when it last ended, seconds, and its MLflow run."""
    busy = _running_stage(space)
    if busy:
        why: dict[str, list[str]] = {}
    else:
        from tasks.freshness import Freshness

        fresh = Freshness(space)
        why = {row.verb: fresh.why_stale(row.verb) for row in PIPELINE}
    rows = []
    upstream_stale: set[str] = set()
    for row in PIPELINE:
        report = space.read_report(row.verb) or {}
        reasons = why.get(row.verb, [])
        waits = [need for need in row.needs if need in upstream_stale]
        if row.verb == busy:
            state = "running"
        elif busy:
            state = "unknown while a stage runs"
        else:
            state = "stale" if reasons else f"waits for {', '.join(waits)}" if waits else "fresh"
        if reasons or waits:
            upstream_stale.add(row.makes)
        about = report.get("run", {})
        rows.append({"stage": row.verb, "state": state, "why": reasons, "ended": about.get("ended"),
                     "seconds": about.get("seconds"), "mlflow_run_id": about.get("mlflow_run_id")})  # fmt: skip
    return rows


def _running_stage(space: Workspace) -> str | None:
    """The stage that is running in the workspace, told by the lock's holder and the newest events file."""
    from filelock import FileLock, Timeout

    folder = space.root / ".groundup"
    folder.mkdir(exist_ok=True)
    try:
        with FileLock(folder / "lock").acquire(timeout=0):
            return None
    except Timeout:
        files = [space.events(row.verb) for row in PIPELINE if space.events(row.verb).is_file()]
        return max(files, key=lambda path: path.stat().st_mtime).stem if files else "?"


def print_tables(tables: Iterable[tuple[str, tuple[str, ...], list[tuple[str, ...]]]]) -> None:
    """(title, columns, rows) as tables; one without rows says that nothing differs."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for title, columns, rows in tables:
        table = Table(*columns, box=None, header_style="bold", title=title, title_justify="left")
        for row in rows:
            table.add_row(*row)
        console.print(table if rows else f"{title}: no difference", "", sep="\n")


def print_status(rows: list[dict[str, Any]]) -> None:
    """The rows as a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold")
    for column in ("stage", "state", "ended", "seconds", "why"):
        table.add_column(column, justify="right" if column == "seconds" else "left")
    for row in rows:
        seconds = f"{row['seconds']:.1f}" if row["seconds"] is not None else ""
        table.add_row(row["stage"], row["state"], row["ended"] or "never", seconds, "; ".join(row["why"][:3]))
    Console().print(table)


def generate(
    project: Path, model: str, prompt: str, max_tokens: int, temperature: float, seed: int, *, continue_text: bool
) -> str:
    """The model's answer to a prompt, or its continuation of a text."""
    folder = Path(model)
    if not folder.is_dir():
        from tasks.registry import Registry

        folder = Registry(tracking_server(project)).model_folder(model, project / ".groundup" / "registry")
    from llm_core.data import dialogue
    from llm_core.data.bpe import Tokenizer
    from llm_core.model.checkpoint import load_model
    from llm_core.model.sampling import generate as sample

    tokenizer = Tokenizer.load(folder)
    stop = dialogue.stop_ids(tokenizer)
    if continue_text:
        ids = tokenizer.encode(prompt)
    else:
        ids = dialogue.encode_prompt([{"role": "user", "content": prompt}], tokenizer)
    if not ids:
        raise BadInput("the prompt is empty")
    options = {"max_new_tokens": max_tokens, "temperature": temperature, "stop_ids": stop, "seed": seed}
    completion = sample(load_model(folder), [ids], **options)[0][0]
    return tokenizer.decode([token for token in completion.tokens if token not in stop])


def accept(project: Path, verb: str) -> None:
    """`dvc commit` of one stage: its product stands for the code and settings as they are now."""
    stage(verb)
    from dvc.repo import Repo

    with contextlib.chdir(project), Repo(str(project)) as repo:
        repo.commit(verb, force=True)


def sync(project: Path) -> list[str]:
    """Send what waits in the outbox."""
    return tracking.sync(project, tracking_server(project))


def rollback(project: Path) -> str:
    """Exchange champion and previous; what happened, in words."""
    from tasks.registry import Registry

    now, before = Registry(tracking_server(project)).rollback()
    return f"champion is version {now.number} ({now.model}) again; version {before.number} is now previous"


def tracking_server(project: Path) -> str:
    """The address of MLflow's server; the project's own is started if none runs."""
    uri = tracking.tracking_uri(project)
    if uri is None:
        print("starting the project's servers", file=sys.stderr)
        uri = servers.ensure(project)[servers.MLFLOW.variable]
    return uri

"""Runs that Prefect starts: from the form of its page, cancelled there, killed under it, waiting for one another."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
import urllib.error
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import pytest
from filelock import FileLock

from deployments import servers, supervisor
from llm_core import artifacts
from tasks import experiments
from tasks.workspace import Workspace

pytestmark = pytest.mark.timeout(1800)

TRAINING = {"settings": {"pretrain": {"steps": 40_000, "save_every_seconds": 1.0}}, "stages": ["pretrain"]}
"""A training that no machine ends before it is stopped."""
CANCEL_S = 10.0


def training(**pretrain: Any) -> dict[str, Any]:
    return {**TRAINING, "settings": {"pretrain": {**TRAINING["settings"]["pretrain"], **pretrain}}}  # type: ignore[index]


@pytest.fixture
def experiment(stack: Workspace, api: Any) -> Any:
    """Starts a run with overrides; (its id, its workspace)."""

    def start(parameters: dict[str, Any]) -> tuple[str, Path]:
        before = {path.name for path in (stack.root / "runs").glob("*")}

        def new() -> Path | None:
            names = {path.parent.name for path in (stack.root / "runs").glob("*/dvc.yaml")} - before
            return stack.root / "runs" / names.pop() if names else None

        run = api.start("build", parameters)
        return run, api.until("the experiment's workspace", lambda: new() or check(api, run))

    return start


def check(api: Any, run: str) -> None:
    """A run that has already failed is told, not waited for."""
    ended = api.has_ended(run)
    assert not ended or ended["type"] == "COMPLETED", ended


def test_up_may_be_repeated(stack: Workspace, api: Any) -> None:
    before = servers.running(stack.root)
    assert set(before) >= {"prefect", "mlflow", "worker"}
    watching = {found["name"]: found["id"] for found in api.ask("automations/filter", {})}
    pids = {path.name: json.loads(path.read_text()).get("pid") for path in (stack.root / ".run").glob("*.json")}
    assert supervisor.up(stack.root, lambda _: None) == before
    assert pids == {path.name: json.loads(path.read_text()).get("pid") for path in (stack.root / ".run").glob("*.json")}
    automations = api.ask("automations/filter", {})
    assert len(automations) == len(watching) >= 3
    assert {found["name"]: found["id"] for found in automations} == watching  # and so the votes that it has counted
    names = {found["name"] for found in api.ask("deployments/filter", {})}
    assert {"build", "refresh", "scaling"} <= names
    assert api.ask("v2/concurrency_limits/gpu")["limit"] >= 1


def test_the_nightly_refresh_is_on_the_calendar(stack: Workspace, api: Any) -> None:
    """The server's scheduler has put the coming nights down; each begins at the hour that prefect.yaml says."""
    if not metadata.version("sqlalchemy").startswith("2.0."):
        pytest.skip("this environment has another SQLAlchemy than pyproject.toml asks for: make install")
    deployment = api.ask("deployments/name/refresh/refresh")["id"]
    wanted = {"deployments": {"id": {"any_": [deployment]}}, "flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}}}
    runs = api.until("scheduled runs", lambda: api.ask("flow_runs/filter", wanted))
    assert {run["next_scheduled_start_time"][11:16] for run in runs} == {"03:00"}


@pytest.mark.parametrize(
    ("parameters", "field"),
    [
        ({"settings": {"pretrain": {"steps": 0}}}, "settings.pretrain.steps"),
        ({"settings": {"pretrain": {"stps": 1}}}, "stps"),
        ({"preset": "huge"}, "preset"),
        ({"stages": ["bake"]}, "stages"),
    ],
)
def test_a_wrong_value_is_refused_before_a_run_exists(
    stack: Workspace, api: Any, parameters: dict[str, Any], field: str
) -> None:
    runs = api.ask("flow_runs/count", {})
    with pytest.raises(urllib.error.HTTPError) as refused:
        api.start("build", parameters)
    assert field in refused.value.read().decode()
    assert api.ask("flow_runs/count", {}) == runs


def test_a_run_that_waits_says_for_whom(stack: Workspace, api: Any) -> None:
    """While another run works in the workspace, the run's page shows a state Waiting with the reason."""
    folder = stack.root / ".groundup"
    folder.mkdir(exist_ok=True)
    holder = folder / "lock-holder.json"
    with FileLock(folder / "lock"):
        holder.write_text(json.dumps({"pid": 12345, "run": "main 01:02:03", "since": "01:02:03"}))
        run = api.start("build", {"stages": ["acquire"]})
        waits = api.until("the run waits", lambda: api.state(run)["name"] == "Waiting" and api.state(run))
        assert "is in use by run main 01:02:03 of process 12345" in waits["message"]
        holder.unlink()
    assert api.ended(run)["type"] == "COMPLETED"
    assert any("is in use by run main" in line["message"] for line in logs(api, run))


def logs(api: Any, run: str) -> list[dict[str, Any]]:
    """What stands under Logs on the run's page; it comes in batches."""

    def lines() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = api.ask("logs/filter", {"logs": {"flow_run_id": {"any_": [run]}}})
        return found if any("Finished in state" in line["message"] for line in found) else []

    return list(api.until("the run's log", lines))


def test_cancel_stops_a_training_and_the_next_run_goes_on(
    stack: Workspace, api: Any, work: Any, experiment: Any
) -> None:
    run, root = experiment(training())
    trainer = api.until("the trainer is at work", work(root).trains)
    asked = time.monotonic()
    api.cancel(run)
    psutil.wait_procs([trainer], timeout=60)
    took = time.monotonic() - asked
    assert not trainer.is_running(), "the trainer lives on after the run was cancelled"
    print(f"the trainer was gone {took:.1f} s after Cancel (wanted: {CANCEL_S:.0f} s)")
    assert api.ended(run)["type"] == "CANCELLED"
    again = api.start("build", {"workspace": str(root), "stages": ["pretrain"]})
    api.until("the training goes on", work(root).continues)
    api.cancel(again)
    api.ended(again)


@pytest.mark.soak
def test_a_run_from_the_form_is_an_experiment(stack: Workspace, api: Any, experiment: Any) -> None:
    raw = stack.product("raw")
    before = artifacts.digest(raw) if raw.exists() else None
    run, root = experiment({"settings": {"tokenize": {"vocab_size": 400}}, "stages": ["tokenize"]})
    assert api.ended(run)["type"] == "COMPLETED"
    assert artifacts.read_manifest(root / "data" / "shards", "shards")["facts"]["vocab_size"] == 400
    assert api.ask(f"flow_runs/{run}")["name"].startswith("tokenize.vocab_size=400 ")
    assert (artifacts.digest(raw) if raw.exists() else None) == before
    names = {task["state"]["name"] for task in api.ask("task_runs/filter", {"flow_runs": {"id": {"any_": [run]}}})}
    assert names <= {"Ran", "Restored", "Fresh", "Skipped", "Completed"}
    assert names & {"Ran", "Restored"}


@pytest.mark.soak
def test_two_experiments_at_once_do_not_disturb_each_other(stack: Workspace, api: Any, experiment: Any) -> None:
    started = [
        experiment({"settings": {"tokenize": {"vocab_size": size}}, "stages": ["tokenize"]}) for size in (420, 440)
    ]
    for (run, root), size in zip(started, (420, 440), strict=True):
        assert api.ended(run)["type"] == "COMPLETED"
        assert artifacts.read_manifest(root / "data" / "shards", "shards")["facts"]["vocab_size"] == size


@pytest.mark.soak
def test_a_lost_run_is_marked_and_the_next_run_goes_on(stack: Workspace, api: Any, work: Any, experiment: Any) -> None:
    """As when the power fails: worker, run and training are killed at once, so nobody is left to say so.

    The automation notices that the run's heartbeat has stopped; a notice is written; the next run continues.
    """
    run, root = experiment(training(seed=7))
    trainer = api.until("the trainer is at work", work(root).trains)
    worker = json.loads((stack.root / ".run" / "worker.json").read_text())["pid"]
    above = [p for p in trainer.parents()[:3] if any(name in " ".join(p.cmdline()) for name in ("prefect", "dvc"))]
    for process in [psutil.Process(worker), *reversed(above), trainer]:
        with contextlib.suppress(psutil.NoSuchProcess):  # the kernel may have ended it after the one above it
            process.kill()
    state = api.ended(run)
    assert state["type"] == "CRASHED"
    told = stack.root / ".run" / "notices.log"
    api.until("the notice", lambda: told.is_file() and f"/runs/flow-run/{run}" in told.read_text())
    api.until("the worker is there again", lambda: "worker" in servers.running(stack.root))
    again = api.start("build", {"workspace": str(root), "stages": ["pretrain"]})
    api.until("the training goes on", work(root).continues)
    api.cancel(again)
    api.ended(again)


@pytest.mark.soak
def test_a_slot_whose_holder_was_killed_comes_back(stack: Workspace, api: Any) -> None:
    """Holder and server are killed at once: the lease is on the disk, and its end frees the slot."""

    def active() -> int:
        return int(api.ask("v2/concurrency_limits/gpu")["active_slots"])

    code = (
        "import time; from tasks import gpus\nwith gpus.slots(1, print):\n  print('held', flush=True); time.sleep(99)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    assert active() == 1
    holder.kill()
    holder.wait()
    psutil.Process(json.loads((stack.root / ".run" / "prefect.json").read_text())["pid"]).kill()
    assert api.until("the slot is free", lambda: active() == 0)


@pytest.mark.soak
def test_a_deployment_of_a_moved_project_says_where_it_looks(
    root: Path, stack: Workspace, api: Any, tmp_path: Path
) -> None:
    text = (stack.root / "params.yaml").read_text()
    moved = experiments.make_workspace(root, tmp_path / "before", text, cache=tmp_path / "cache").root
    supervisor._deploy(moved)
    moved.rename(tmp_path / "after")
    try:
        run = api.start("build", {"stages": ["acquire"]})
        state = api.ended(run)
    finally:
        supervisor._deploy(stack.root)
    assert state["type"] in ("CRASHED", "FAILED")
    filter_ = {"logs": {"flow_run_id": {"any_": [run]}}}
    sentence = f"this deployment looks for its project in {moved}, where none is"
    api.until("the run's log", lambda: any(sentence in line["message"] for line in api.ask("logs/filter", filter_)))

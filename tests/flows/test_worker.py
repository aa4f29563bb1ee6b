"""Runs that Prefect starts: from the form of its page, by a schedule, cancelled there, killed under it."""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from deployments import servers, supervisor
from llm_core import artifacts
from tasks.workspace import Workspace

pytestmark = [pytest.mark.soak, pytest.mark.timeout(1800)]

PATIENCE_S = 300.0
TRAINING = {"settings": {"pretrain": {"steps": 40_000, "save_every_seconds": 1.0}}, "stages": ["pretrain"]}
"""A training that no machine ends before it is stopped."""


@pytest.fixture(scope="module")
def stack(workspace: Workspace) -> Iterator[Workspace]:
    supervisor.up(workspace.root, lambda _: None)
    yield workspace
    servers.stop(workspace.root, (servers.WORKER,))


def ask(path: str, body: dict[str, Any] | None = None) -> Any:
    """A call of Prefect's API: GET, or POST with a body. A server that says it is busy is asked again."""
    data = None if body is None else json.dumps(body).encode()
    url = f"{os.environ['PREFECT_API_URL']}/{path}"
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    for attempt in range(20):
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            if error.code != 503 or attempt == 19:
                raise
            time.sleep(0.5)
    raise AssertionError


def start(deployment: str, parameters: dict[str, Any]) -> str:
    """Start a run as the page does; its id."""
    found = ask(f"deployments/name/{deployment}/{deployment}")
    body = {"parameters": parameters, "state": {"type": "SCHEDULED"}}
    return str(ask(f"deployments/{found['id']}/create_flow_run", body)["id"])


def until(what: str, reached: Callable[[], Any]) -> Any:
    """Wait until `reached` gives something true, and return that."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if found := reached():
            return found
        time.sleep(0.2)
    raise AssertionError(f"{what}: not within {PATIENCE_S:.0f} s")


def ended(run: str) -> dict[str, Any]:
    """The run's state once it has ended."""

    def state() -> dict[str, Any] | None:
        found: dict[str, Any] = ask(f"flow_runs/{run}")["state"]
        return found if found["type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED") else None

    state_: dict[str, Any] = until(f"run {run} ends", state)
    return state_


def trainer_of(root: Path, since: float) -> psutil.Process:
    """The process that trains in a workspace, once it has done some steps and saved."""
    events = root / ".groundup" / "events" / "pretrain.jsonl"

    def process() -> psutil.Process | None:
        if not events.is_file() or events.stat().st_mtime < since:
            return None
        told = [json.loads(line) for line in events.read_text().splitlines()[:-1]]
        steps = any(event["event"] == "progress" and event["done"] > 20 for event in told)
        saved = list((root / ".groundup" / "scratch").glob("pretrain-*/*"))
        return psutil.Process(next(e["pid"] for e in told if e["event"] == "started")) if steps and saved else None

    found: psutil.Process = until("the trainer is at work", process)
    return found


def experiment_of(workspace: Workspace, before: set[str]) -> Path:
    """The folder of the experiment that is new in runs/."""

    def new() -> Path | None:
        names = {path.name for path in (workspace.root / "runs").glob("*")} - before
        return workspace.root / "runs" / names.pop() if names else None

    found: Path = until("the experiment's workspace", new)
    return found


def experiments_now(workspace: Workspace) -> set[str]:
    return {path.name for path in (workspace.root / "runs").glob("*")}


def test_up_may_be_repeated(stack: Workspace) -> None:
    before = servers.running(stack.root)
    assert set(before) == {"prefect", "mlflow", "worker"}
    assert supervisor.up(stack.root, lambda _: None) == before
    automations = ask("automations/filter", {})
    assert len(automations) == len({automation["name"] for automation in automations}) == 2
    names = {found["name"] for found in ask("deployments/filter", {})}
    assert {"build", "refresh"} <= names


@pytest.mark.parametrize(
    ("parameters", "field"),
    [
        ({"settings": {"pretrain": {"steps": 0}}}, "settings.pretrain.steps"),
        ({"settings": {"pretrain": {"stps": 1}}}, "stps"),
        ({"preset": "huge"}, "preset"),
        ({"stages": ["bake"]}, "stages"),
    ],
)
def test_a_wrong_value_is_refused_before_a_run_exists(stack: Workspace, parameters: dict[str, Any], field: str) -> None:
    runs = ask("flow_runs/count", {})
    with pytest.raises(urllib.error.HTTPError) as refused:
        start("build", parameters)
    assert field in refused.value.read().decode()
    assert ask("flow_runs/count", {}) == runs


def test_a_run_from_the_form_is_an_experiment(stack: Workspace) -> None:
    start_digest = artifacts.digest(stack.product("raw")) if stack.product("raw").exists() else None
    before = experiments_now(stack)
    run = start("build", {"settings": {"tokenize": {"vocab_size": 400}}, "stages": ["tokenize"]})
    assert ended(run)["type"] == "COMPLETED"
    root = experiment_of(stack, before)
    assert artifacts.read_manifest(root / "data" / "shards", "shards")["facts"]["vocab_size"] == 400
    assert ask(f"flow_runs/{run}")["name"].startswith("tokenize.vocab_size=400 ")
    now = artifacts.digest(stack.product("raw")) if stack.product("raw").exists() else None
    assert now == start_digest
    names = {task["state"]["name"] for task in ask("task_runs/filter", {"flow_runs": {"id": {"any_": [run]}}})}
    assert names <= {"Ran", "Restored", "Fresh", "Skipped", "Completed"}
    assert names & {"Ran", "Restored"}


def test_cancel_stops_a_training_and_the_next_run_goes_on(stack: Workspace) -> None:
    before, since = experiments_now(stack), time.time()
    run = start("build", TRAINING)
    root = experiment_of(stack, before)
    trainer = trainer_of(root, since)
    asked = time.monotonic()
    ask(f"flow_runs/{run}/set_state", {"state": {"type": "CANCELLING", "name": "Cancelling"}, "force": True})
    _, alive = psutil.wait_procs([trainer], timeout=25)
    assert not alive, f"the trainer lives on {time.monotonic() - asked:.0f} s after the run was cancelled"
    assert ended(run)["type"] == "CANCELLED"
    again = start("build", TRAINING | {"workspace": str(root), "settings": None})
    trainer = trainer_of(root, time.time())
    assert "continues from step" in (root / ".groundup" / "events" / "pretrain.jsonl").read_text()
    ask(f"flow_runs/{again}/set_state", {"state": {"type": "CANCELLING", "name": "Cancelling"}, "force": True})
    ended(again)


def test_a_killed_engine_leaves_no_orphan_and_retry_goes_on(stack: Workspace) -> None:
    before, since = experiments_now(stack), time.time()
    parameters = {**TRAINING, "settings": {"pretrain": TRAINING["settings"]["pretrain"] | {"seed": 5}}}  # type: ignore[index]
    run = start("build", parameters)
    root = experiment_of(stack, before)
    trainer = trainer_of(root, since)
    engine = next(p for p in trainer.parents() if "prefect" in " ".join(p.cmdline()) and "worker" not in p.cmdline())
    engine.kill()
    _, alive = psutil.wait_procs([trainer], timeout=25)
    assert not alive, "the trainer outlived the run that started it"
    assert ended(run)["type"] == "CRASHED"
    resumed = time.time()
    ask(f"flow_runs/{run}/set_state", {"state": {"type": "SCHEDULED", "name": "AwaitingRetry"}, "force": True})
    trainer_of(root, resumed)
    assert "continues from step" in (root / ".groundup" / "events" / "pretrain.jsonl").read_text()
    ask(f"flow_runs/{run}/set_state", {"state": {"type": "CANCELLING", "name": "Cancelling"}, "force": True})
    ended(run)

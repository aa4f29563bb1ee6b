"""Prefect's API as its page uses it, and the whole stack under the session's workspace."""

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
from tasks.workspace import Workspace

PATIENCE_S = 400.0
ENDS = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


class Api:
    """Calls of Prefect's API, and waiting for what they lead to."""

    def ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """GET, or POST with a body. A server that is busy, or is just being started again, is asked again."""
        data = None if body is None else json.dumps(body).encode()
        deadline = time.monotonic() + PATIENCE_S
        while True:
            url = f"{os.environ['PREFECT_API_URL']}/{path}"
            request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
            try:
                with urllib.request.urlopen(request, timeout=60) as response:
                    return json.loads(response.read() or "null")
            except urllib.error.HTTPError as error:
                if error.code != 503 or time.monotonic() > deadline:
                    raise
            except OSError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.3)

    def start(self, deployment: str, parameters: dict[str, Any]) -> str:
        """Start a run as the page does; its id."""
        found = self.ask(f"deployments/name/{deployment}/{deployment}")
        body = {"parameters": parameters, "state": {"type": "SCHEDULED"}}
        return str(self.ask(f"deployments/{found['id']}/create_flow_run", body)["id"])

    def set_state(self, run: str, kind: str, name: str) -> None:
        self.ask(f"flow_runs/{run}/set_state", {"state": {"type": kind, "name": name}, "force": True})

    def cancel(self, run: str) -> None:
        """The button Cancel."""
        self.set_state(run, "CANCELLING", "Cancelling")

    def retry(self, run: str) -> None:
        """The button Retry."""
        self.set_state(run, "SCHEDULED", "AwaitingRetry")

    def state(self, run: str) -> dict[str, Any]:
        found: dict[str, Any] = self.ask(f"flow_runs/{run}")["state"]
        return found

    def has_ended(self, run: str) -> dict[str, Any] | None:
        """The run's state if it has ended."""
        state = self.state(run)
        return state if state["type"] in ENDS else None

    def ended(self, run: str) -> dict[str, Any]:
        """The run's state once it has ended."""
        state: dict[str, Any] = self.until(f"run {run} ends", lambda: self.has_ended(run))
        return state

    def until(self, what: str, reached: Callable[[], Any]) -> Any:
        """Wait until `reached` gives something true, and return that."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            if found := reached():
                return found
            time.sleep(0.1)
        raise AssertionError(f"{what}: not within {PATIENCE_S:.0f} s")


class Work:
    """What happens in a workspace, read from the files that its stages write."""

    def __init__(self, root: Path, verb: str = "pretrain") -> None:
        self.root, self.verb = root, verb
        self.events = root / ".groundup" / "events" / f"{verb}.jsonl"

    def told(self) -> list[dict[str, Any]]:
        """Events of the attempt that runs, or ran last."""
        text = self.events.read_text() if self.events.is_file() else ""
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def step(self) -> float:
        """How far that attempt has come."""
        return max([0.0, *(event["done"] for event in self.told() if event["event"] == "progress")])

    def continues(self) -> bool:
        """Whether that attempt goes on from a resume point."""
        return any("continues from step" in event.get("text", "") for event in self.told())

    def process(self) -> psutil.Process | None:
        """The stage's process, if it lives."""
        pids = [event["pid"] for event in self.told() if event["event"] == "started"]
        if not pids or not psutil.pid_exists(pids[-1]):
            return None
        process = psutil.Process(pids[-1])
        return process if process.status() != psutil.STATUS_ZOMBIE and "tasks.run" in process.cmdline() else None

    def trains(self) -> psutil.Process | None:
        """The stage's process once it has done some steps and saved a resume point."""
        saved = any(path.is_dir() and path.name != "record"
                    for path in (self.root / ".groundup" / "scratch").glob(f"{self.verb}-*/*"))  # fmt: skip
        return self.process() if saved and self.step() > 20 else None


@pytest.fixture(scope="session")
def api() -> Api:
    return Api()


@pytest.fixture(scope="session")
def work() -> type[Work]:
    return Work


@pytest.fixture(scope="module")
def stack(workspace: Workspace) -> Iterator[Workspace]:
    """`groundup up` over the session's workspace; afterwards only its two servers are left."""
    supervisor.up(workspace.root, lambda _: None)
    yield workspace
    servers.stop(workspace.root, tuple(s for s in servers.ALL if s not in servers.SERVERS))

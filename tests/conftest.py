"""Fixtures for all tests. No test reaches the network: hubs are switched off before anything can import them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

os.environ.update(
    HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", DO_NOT_TRACK="1", MLFLOW_DISABLE_TELEMETRY="true", DVC_NO_ANALYTICS="1"
)

import hypothesis
import pytest

from deployments import servers
from tasks import experiments, params
from tasks.workspace import Workspace

SLOW = [hypothesis.HealthCheck.too_slow]  # the machine may be
hypothesis.settings.register_profile(
    "fixed", derandomize=True, database=None, deadline=None, suppress_health_check=SLOW
)
hypothesis.settings.register_profile("explore", max_examples=20_000, deadline=None)
hypothesis.settings.load_profile(os.environ.get("GROUNDUP_HYPOTHESIS", "fixed"))  # the same tests say the same twice

ROOT = Path(__file__).resolve().parents[1]
SHARED_DATA = ROOT.parent / "shared" / "data"


LONG = ("test_whole_job.py", "test_readme.py", "flows", "browser", "deployments", "apps")
"""Files and folders of tests that take minutes: they come first, so that two workers end at about the same time.

The whole job comes before the README's story, which finds in DVC's cache what the session's workspace has made.
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Bring the long ones to the front; within a file the order stays."""

    def rank(item: pytest.Item) -> int:
        parts = item.path.relative_to(ROOT / "tests").parts
        return next((place for place, name in enumerate(LONG) if name in parts), len(LONG))

    items.sort(key=rank)


@pytest.fixture(scope="session")
def root() -> Path:
    """The project's root directory."""
    return ROOT


@pytest.fixture(scope="session")
def page_from() -> Callable[..., AbstractContextManager[str]]:
    """Starts a process that serves a page at a port of this machine and waits until it listens; the page's address.

    Called with the command as it is for a port, the seconds it may take, and what `Popen` is told besides.
    """
    return _page_from


@contextmanager
def _page_from(command: Callable[[int], list[str]], seconds: float, **options: Any) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    child = subprocess.Popen(command(port), **options)
    try:
        deadline = time.monotonic() + seconds
        while not _listens(port):
            assert child.poll() is None, "the page ended before it answered"
            assert time.monotonic() < deadline, "the page never answered"
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        child.terminate()
        child.wait(30)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data that nobody on the project wrote; a test that needs it is skipped where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"no reference data at {SHARED_DATA}")
    return SHARED_DATA


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Iterator[Workspace]:
    """A main workspace of tiny size outside the project, with its own DVC cache and its own running servers."""
    folder = tmp_path_factory.mktemp("project")
    tiny = params.overlay(params.read(root / "params.yaml"), params.read(root / "presets" / "tiny.yaml"))
    space = experiments.make_workspace(root, folder, params.dump(tiny), cache=folder / ".dvc" / "cache")
    for variable in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI", "PREFECT_HOME"):
        os.environ.pop(variable, None)
    try:
        servers.ensure(folder)
        yield space
    finally:
        servers.stop(folder)


@pytest.fixture(scope="session")
def voting_project(workspace: Workspace, root: Path, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A project of its own with a chat model of seconds and an empty votes file; it uses the session's servers."""
    folder = tmp_path_factory.mktemp("voting")
    small = {
        "pretrain": {"steps": 12, "evaluate_every": 6},
        "sft": {"steps": 24, "evaluate_every": 12},
        "collect": {"min_votes": 3, "min_seconds": 0, "validation_share": 0.3},
        "evaluate": {"problems": 20, "base_problems": 5, "choices": 8, "cloze": 8, "bootstrap": 100},
    }
    tiny = params.overlay(params.read(root / "params.yaml"), params.read(root / "presets" / "tiny.yaml"))
    content = params.dump(params.overlay(tiny, small))
    space = experiments.make_workspace(root, folder, content, cache=folder / ".dvc" / "cache")
    (folder / "feedback").unlink()  # a link to the project's: votes of a test stay in the test
    (folder / "feedback").mkdir()
    (folder / "feedback" / "votes.jsonl").touch()
    command = [sys.executable, "-m", "flows.cli", "run", "sft"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return space

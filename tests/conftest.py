"""Fixtures for all tests. No test reaches the network: hubs are switched off before anything can import them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

os.environ.update(
    HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", DO_NOT_TRACK="1", MLFLOW_DISABLE_TELEMETRY="true", DVC_NO_ANALYTICS="1"
)

import pytest

from deployments import servers
from tasks import experiments, params
from tasks.workspace import Workspace

ROOT = Path(__file__).resolve().parents[1]
SHARED_DATA = ROOT.parent / "shared" / "data"


@pytest.fixture(scope="session")
def root() -> Path:
    """The project's root directory."""
    return ROOT


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
    servers.ensure(folder)
    yield space
    servers.stop(folder)

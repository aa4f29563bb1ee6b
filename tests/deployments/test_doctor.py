"""The doctor names what is wrong and how to mend it, and touches nothing."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from filelock import FileLock

from deployments import doctor, servers
from tasks import experiments


@pytest.fixture
def project(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for server in servers.SERVERS:
        monkeypatch.delenv(server.variable, raising=False)
    text = (root / "params.yaml").read_text()
    return experiments.make_workspace(root, tmp_path / "project", text, cache=tmp_path / "cache").root


def findings(project: Path) -> dict[str, doctor.Finding]:
    return {found.check: found for found in doctor.examine(project)}


def test_a_sound_workspace_has_nothing_wrong(project: Path) -> None:
    before = sorted(path.name for path in project.iterdir())
    found = findings(project)
    assert [name for name, finding in found.items() if finding.state == "wrong" and name != "disk"] == []
    assert set(found) >= {"Python", "versions", "disk", "memory", "params.yaml", "lock", "prefect", "mlflow", "worker"}
    assert sorted(path.name for path in project.iterdir()) == before


def test_wrong_settings_are_named(project: Path) -> None:
    (project / "params.yaml").write_text("pretrain: {steps: 0}\n")
    assert findings(project)["params.yaml"].state == "wrong"
    assert "pretrain.steps = 0" in findings(project)["params.yaml"].text


def test_other_versions_than_the_tried_ones(project: Path) -> None:
    (project / "constraints.txt").unlink()  # a link to the project's own
    (project / "constraints.txt").write_text("numpy==0.0.1\nno-such-package==1\n")
    found = findings(project)["versions"]
    assert found.state == "warning"
    assert "instead of 0.0.1" in found.text
    assert "no-such-package" not in found.text


def test_a_held_lock(project: Path) -> None:
    (project / ".groundup").mkdir()
    with FileLock(project / ".groundup" / "lock"):
        assert findings(project)["lock"].state == "warning"
    assert findings(project)["lock"].state == "ok"


def test_a_server_that_is_named_but_silent(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    found = findings(project)["mlflow"]
    assert found.state == "wrong"
    assert "unset MLFLOW_TRACKING_URI" in found.remedy


def test_a_taken_port_is_said(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind((servers.HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setattr(servers, "WORKER", servers.Server("worker", port, "/health", "", ""))
        assert f"port {port} is taken" in findings(project)["worker"].text


def test_a_full_disk_and_an_offline_hub(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "LEAST_DISK_GB", 1e9)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert findings(project)["disk"].state == "wrong"
    assert findings(project)["hub"].state == "warning"

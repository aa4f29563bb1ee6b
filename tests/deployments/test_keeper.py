"""The keeper starts again what died, leaves alone what dies all the time, and tells once how runs ended."""

from __future__ import annotations

import http.server
import json
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import psutil
import pytest

from deployments import keeper, notices, servers
from llm_core.contract import BadInput


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project whose only server is a small HTTP server of Python's own."""
    line = [sys.executable, "-m", "http.server", "--bind", servers.HOST]
    monkeypatch.setattr(servers, "command", lambda folder, server, port: ([*line, str(port)], {}))
    monkeypatch.setattr(servers, "SERVERS", (servers.Server("mlflow", 0, "/", "", ""),))
    (tmp_path / ".run").mkdir()
    (tmp_path / "deployments").mkdir()
    (tmp_path / "deployments" / "notices.yaml").write_text("states: []\n")
    return tmp_path


def state(project: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((project / ".run" / "mlflow.json").read_text())
    return found


def test_what_died_is_started_again_on_its_port(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    servers._start(project, servers.SERVERS[0])
    servers._wait_until_ready(project, servers.SERVERS[0])
    before, watch = state(project), keeper.Keeper(project)
    watch.look()
    assert state(project) == before
    psutil.Process(before["pid"]).kill()
    psutil.Process(before["pid"]).wait(30)
    watch.look()
    after = state(project)
    assert after["port"] == before["port"]
    assert after["pid"] != before["pid"]
    assert servers.answers(after["url"])
    assert "mlflow had died and was started again" in capsys.readouterr().out
    assert servers.stop(project) == ["mlflow"]
    watch.look()
    assert not (project / ".run" / "mlflow.json").exists(), "what was stopped stays stopped"


def test_what_dies_all_the_time_is_left_alone(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    revived: list[str] = []
    monkeypatch.setattr(servers, "revive", lambda project: revived.append("worker") or ["worker"])
    watch = keeper.Keeper(project)
    for _ in range(3 * keeper.MOST_DEATHS):
        watch.look()
    assert len(revived) == keeper.MOST_DEATHS
    assert "nothing is started again for a while" in capsys.readouterr().out


def test_what_a_dead_server_left_behind_is_killed(tmp_path: Path) -> None:
    """MLflow's process starts another one, which outlives it and holds its port."""
    code = "import subprocess, sys; print(subprocess.Popen(['sleep', '600']).pid, flush=True); sys.stdin.read()"
    leader = subprocess.Popen(
        [sys.executable, "-c", code], start_new_session=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert leader.stdout is not None
    child = psutil.Process(int(leader.stdout.readline()))
    (tmp_path / ".run").mkdir()
    about = {"pid": leader.pid, "created": psutil.Process(leader.pid).create_time(), "port": 1, "url": "http://x"}
    (tmp_path / ".run" / "mlflow.json").write_text(json.dumps(about))
    leader.kill()
    leader.wait()
    assert child.is_running()
    servers.stop(tmp_path)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


class Hearer(http.server.BaseHTTPRequestHandler):
    """Stands for Prefect's API and for a webhook."""

    runs: ClassVar[list[dict[str, Any]]] = []
    heard: ClassVar[list[dict[str, Any]]] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/hook":
            self.heard.append(body)
        else:
            assert set(body["flow_runs"]["state"]["type"]["any_"]) == {"FAILED", "CRASHED"}
        answer = json.dumps(self.runs if self.path.endswith("filter") else {}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def hearer(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    Hearer.runs.clear()
    Hearer.heard.clear()
    with socketserver.ThreadingTCPServer((servers.HOST, 0), Hearer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://{servers.HOST}:{server.server_address[1]}"
        monkeypatch.setenv("PREFECT_API_URL", f"{url}/api")
        monkeypatch.setattr(notices, "LOOK_EVERY_S", 0.0)
        yield url
        server.shutdown()


def test_an_ended_run_is_told_once_in_the_log_and_to_the_webhook(
    project: Path, hearer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOOK", f"{hearer}/hook")
    (project / "deployments" / "notices.yaml").write_text("webhook: $HOOK\n")
    watch = notices.Notices(project)
    assert watch.look() == []
    run = {"id": "7", "name": "main 01:02:03", "run_count": 1, "end_time": "2026-01-02T03:04:05Z",
           "state": {"name": "Crashed", "message": "The process\nis gone."}}  # fmt: skip
    Hearer.runs.append(run)
    sentence = f"main 01:02:03: Crashed: The process is gone. {hearer}/runs/flow-run/7"
    assert watch.look() == [sentence]
    assert watch.look() == []
    assert notices.Notices(project).look() == [], "a keeper that was started again tells nothing twice"
    assert (project / ".run" / "notices.log").read_text() == f"2026-01-02T03:04:05Z {sentence}\n"
    assert [heard["state"] for heard in Hearer.heard] == ["Crashed"]
    run["run_count"] = 2
    assert watch.look() == [sentence], "a retry that ends badly is told again"


def test_a_silent_webhook_is_said_and_stops_nothing(project: Path, hearer: str) -> None:
    (project / "deployments" / "notices.yaml").write_text("webhook: http://127.0.0.1:9/\nlog: null\n")
    watch = notices.Notices(project)
    state = {"name": "Failed", "message": None}
    Hearer.runs.append({"id": "8", "name": "main", "run_count": 1, "end_time": "2026", "state": state})
    assert "did not take it" in watch.look()[1]
    assert not (project / ".run" / "notices.log").exists()


def test_a_silent_server_is_asked_again(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    (project / "deployments" / "notices.yaml").unlink()
    assert notices.Notices(project).look() == []


@pytest.mark.parametrize(
    ("text", "named"), [("stats: [FAILED]", "stats"), ("states: [BROKEN]", "states.0"), ("webhook: 7", "webhook")]
)
def test_wrong_options_are_named(project: Path, text: str, named: str) -> None:
    (project / "deployments" / "notices.yaml").write_text(text)
    with pytest.raises(BadInput, match=named):
        notices.read_options(project)


def test_the_projects_own_options_are_valid(root: Path) -> None:
    assert notices.read_options(root).states == ("FAILED", "CRASHED")


def test_stopping_the_keeper_spares_what_it_started(tmp_path: Path) -> None:
    started = "subprocess.Popen(['sleep', '600'], start_new_session=True)"
    code = f"import subprocess, sys; print({started}.pid, flush=True); sys.stdin.read()"
    process = subprocess.Popen(
        [sys.executable, "-c", code], start_new_session=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    revived = psutil.Process(int(process.stdout.readline()))
    (tmp_path / ".run").mkdir()
    about = {"pid": process.pid, "created": psutil.Process(process.pid).create_time()}
    (tmp_path / ".run" / "keeper.json").write_text(json.dumps(about))
    try:
        servers.stop(tmp_path, (servers.KEEPER,))
        assert not psutil.pid_exists(process.pid)
        assert revived.is_running()
    finally:
        revived.kill()

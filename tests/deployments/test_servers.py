"""The project's servers: started once, on a free port, found again, and gone when stopped."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from deployments import servers
from tasks.workspace import Workspace


def test_both_answer_and_a_second_start_finds_them(workspace: Workspace) -> None:
    urls = servers.running(workspace.root)
    assert set(urls) == {"prefect", "mlflow"}
    assert all(servers.answers(urls[server.name] + server.health) for server in servers.SERVERS)
    before = {name: (workspace.root / ".run" / f"{name}.json").read_bytes() for name in urls}
    servers.ensure(workspace.root)
    assert before == {name: (workspace.root / ".run" / f"{name}.json").read_bytes() for name in urls}


def test_a_taken_port_is_not_used() -> None:
    with socket.socket() as taken:
        taken.bind((servers.HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert servers.free_port(port) != port


def test_another_process_with_the_old_number_is_not_taken_for_ours(tmp_path: Path) -> None:
    """Process numbers are reused: the time of creation tells a stranger from our server."""
    (tmp_path / ".run").mkdir()
    state = {"pid": os.getpid(), "created": psutil.Process().create_time() - 100, "url": "http://127.0.0.1:1"}
    (tmp_path / ".run" / "mlflow.json").write_text(json.dumps(state))
    assert servers.running(tmp_path) == {}
    assert servers.stop(tmp_path) == []


def test_stopping_leaves_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A family of processes stands in for the real servers, which take seconds to start."""
    child = "import time; time.sleep(60)"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    monkeypatch.setattr(servers, "SERVERS", (servers.MLFLOW,))
    (tmp_path / ".run").mkdir()
    created = psutil.Process(process.pid).create_time()
    state = {"pid": process.pid, "created": created, "url": "http://127.0.0.1:1"}
    (tmp_path / ".run" / "mlflow.json").write_text(json.dumps(state))
    while not (children := psutil.Process(process.pid).children()):
        pass
    assert servers.stop(tmp_path) == ["mlflow"]
    process.wait(60)
    assert not any(child.is_running() and child.status() != "zombie" for child in children)
    assert not (tmp_path / ".run" / "mlflow.json").exists()


SLOW_SERVER = """
import http.server, sys, time
time.sleep(1)
class Healthy(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
http.server.HTTPServer.allow_reuse_address = False
try:
    http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Healthy).serve_forever()
except OSError:
    if sys.argv[2] == "lives on":
        time.sleep(600)
    raise
"""


@pytest.mark.parametrize("without_a_port", ["lives on", "ends"])
def test_two_projects_that_found_the_same_port_free_get_a_server_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without_a_port: str
) -> None:
    """Both start before either listens; the one that comes second must neither fail nor take the other for its own."""
    with socket.socket() as free:
        free.bind((servers.HOST, 0))
        wanted = servers.Server("mlflow", free.getsockname()[1], "/health", "", "")
    line = [sys.executable, "-c", SLOW_SERVER]
    monkeypatch.setattr(servers, "command", lambda folder, server, port: ([*line, str(port), without_a_port], {}))
    projects = [tmp_path / "one", tmp_path / "two"]
    try:
        for project in projects:
            project.mkdir()
            servers._start(project, wanted)
        assert len({servers._state(project, wanted)["url"] for project in projects}) == 1
        for project in projects:
            servers._wait_until_ready(project, wanted)
        urls = {servers._state(project, wanted)["url"] for project in projects}
        assert len(urls) == 2
        assert all(servers.answers(f"{url}/health") for url in urls)
    finally:
        for project in projects:
            servers.stop(project, (wanted,))

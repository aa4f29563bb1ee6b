"""The project's own Prefect and MLflow servers: start, find, stop. Their state is in `.run/`.

A server that another project runs is never adopted: a server is ours if `.run/<name>.json` names its process and that
process is still the one we started. PREFECT_API_URL and MLFLOW_TRACKING_URI name other servers instead of ours.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import psutil

from llm_core import artifacts

HOST = "127.0.0.1"
PATIENCE_S = 120.0


@dataclass(frozen=True)
class Server:
    """A kind of server: the port it likes, the path that answers when it is ready, the variable that replaces it.

    The variable names another server of that kind, which is used instead of ours; "" for what has none.
    """

    name: str
    port: int
    health: str
    variable: str
    suffix: str


PREFECT = Server("prefect", 4200, "/api/health", "PREFECT_API_URL", "/api")
MLFLOW = Server("mlflow", 5000, "/health", "MLFLOW_TRACKING_URI", "")
WORKER = Server("worker", 8080, "/health", "", "")
SERVERS = (PREFECT, MLFLOW)
POOL = "groundup"
"""Name of the Prefect work pool."""


class ServerFailed(RuntimeError):
    """A server did not become ready; the message names its log."""


def ensure(project: Path) -> dict[str, str]:
    """Start what is not running and wait until all answer. Returns the variables that clients need.

    The variables are also put into this process's environment, for the children it starts.
    """
    os.environ.setdefault("PREFECT_HOME", str(project / ".run" / "prefect"))
    started = [server for server in SERVERS if server.variable not in os.environ and not _running(project, server)]
    for server in started:
        _start(project, server)
    for server in started:
        _wait_until_ready(project, server)
    for server in SERVERS:
        if server.variable not in os.environ:
            os.environ[server.variable] = _state(project, server)["url"] + server.suffix
    return {server.variable: os.environ[server.variable] for server in SERVERS}


def stop(project: Path, which: tuple[Server, ...] | None = None) -> list[str]:
    """Stop the worker and the servers of this project, or some of them; the names of those that were running."""
    stopped = []
    for server in which or (WORKER, *SERVERS):  # the worker first: without its server it would only complain
        process = _running(project, server)
        if process:
            _end_tree(process)
            stopped.append(server.name)
        _state_path(project, server).unlink(missing_ok=True)
    return stopped


def running(project: Path) -> dict[str, str]:
    """URL of each of the project's servers that is up, by name."""
    return {server.name: _state(project, server)["url"] for server in (*SERVERS, WORKER) if _running(project, server)}


def ensure_worker(project: Path) -> str:
    """Start the worker that takes runs from the work pool, if it does not run; the servers must. Returns its URL."""
    if not _running(project, WORKER):
        _start(project, WORKER)
        _wait_until_ready(project, WORKER)
    return _state(project, WORKER)["url"]


def _state_path(project: Path, server: Server) -> Path:
    return project / ".run" / f"{server.name}.json"


def _state(project: Path, server: Server) -> dict[str, str]:
    state: dict[str, str] = json.loads(_state_path(project, server).read_text())
    return state


def _running(project: Path, server: Server) -> psutil.Process | None:
    """The server's process, if it is still the one that we started."""
    path = _state_path(project, server)
    if not path.is_file():
        return None
    state = json.loads(path.read_text())
    try:
        process = psutil.Process(state["pid"])
        same = abs(process.create_time() - state["created"]) < 1 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return None
    return process if same else None


def _start(project: Path, server: Server) -> None:
    folder = project / ".run"
    folder.mkdir(exist_ok=True)
    port = free_port(server.port)
    command, extra = _command(folder, server, port)
    with open(folder / f"{server.name}.log", "ab") as log:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=os.environ | extra,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    state = {
        "pid": process.pid,
        "created": psutil.Process(process.pid).create_time(),
        "port": port,
        "url": f"http://{HOST}:{port}",
    }
    artifacts.write_atomic(_state_path(project, server), artifacts.dump_json(state))


def _command(folder: Path, server: Server, port: int) -> tuple[list[str], dict[str, str]]:
    """The command line and the extra environment of a server."""
    if server is PREFECT:
        # The UI asks its server at the address named by these variables; `--port` alone leaves it pointing at 4200.
        extra = {
            "PREFECT_HOME": str(folder / "prefect"),
            "PREFECT_SERVER_API_HOST": HOST,
            "PREFECT_SERVER_API_PORT": str(port),
            "PREFECT_SERVER_UI_API_URL": f"http://{HOST}:{port}/api",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_API_URL": f"http://{HOST}:{port}/api",
            "DO_NOT_TRACK": "1",
        }
        return [sys.executable, "-m", "prefect", "server", "start"], extra
    if server is WORKER:
        extra = {
            "PREFECT_WORKER_WEBSERVER_HOST": HOST,
            "PREFECT_WORKER_WEBSERVER_PORT": str(port),
            "PREFECT_WORKER_QUERY_SECONDS": "2",  # a click becomes a run within seconds
            "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",  # the automation that finds lost runs listens for these
            "GROUNDUP_PROJECT": str(folder.parent),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        }
        start = ["worker", "start", "--pool", POOL, "--name", "local", "--type", "process", "--with-healthcheck"]
        return [sys.executable, "-m", "prefect", *start], extra
    store = folder / "mlflow"
    store.mkdir(exist_ok=True)
    arguments = ["--host", HOST, "--port", str(port), "--workers", "1"]
    arguments += ["--backend-store-uri", f"sqlite:///{store / 'mlflow.db'}"]
    arguments += ["--artifacts-destination", str(store / "artifacts")]
    # Job execution would start eight more processes, 2 GB, for features that are not used here.
    extra = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    return [sys.executable, "-m", "mlflow", "server", *arguments], extra


def free_port(wanted: int) -> int:
    """`wanted` if nothing listens there, else a free port of the system's choice."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise ServerFailed(f"{HOST}: no free port")


def _wait_until_ready(project: Path, server: Server) -> None:
    deadline = time.monotonic() + PATIENCE_S
    url = _state(project, server)["url"] + server.health
    log = project / ".run" / f"{server.name}.log"
    while time.monotonic() < deadline:
        if not _running(project, server):
            raise ServerFailed(f"{server.name}: its server ended at once; see {log}")
        if answers(url):
            return
        time.sleep(0.2)
    raise ServerFailed(f"{server.name}: no answer from {url} within {PATIENCE_S:.0f} s; see {log}")


def answers(url: str) -> bool:
    """Whether a GET of `url` gives 200."""
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _end_tree(process: psutil.Process) -> None:
    """SIGTERM to a server and its children, SIGKILL to what is left after ten seconds."""
    family = [process, *process.children(recursive=True)]
    for member in family:
        if member.is_running():
            member.send_signal(signal.SIGTERM)
    _, alive = psutil.wait_procs(family, timeout=10)
    for member in alive:
        member.kill()
    psutil.wait_procs(alive, timeout=5)

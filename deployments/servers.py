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
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
from filelock import FileLock

from llm_core import artifacts

HOST = "127.0.0.1"
PATIENCE_S = 120.0
PORTS_TRIED = 3


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
CHAT = Server("chat", 7860, "/health", "", "")
KEEPER = Server("keeper", 0, "", "", "")
"""Starts the others again when they die; it has no page of its own."""
SERVERS = (PREFECT, MLFLOW)
ALL = (KEEPER, WORKER, CHAT, *SERVERS)
"""Everything, in the order in which it is stopped: the keeper first, or it would start the others again; then the
worker, which without its server would complain."""
POOL = "groundup"
"""Name of the Prefect work pool."""


class ServerFailed(RuntimeError):
    """A server did not become ready; the message names its log."""


def ensure(project: Path) -> dict[str, str]:
    """Start what is not running and wait until all answer. Returns the variables that clients need.

    The variables are also put into this process's environment, for the children it starts.
    """
    os.environ.setdefault("PREFECT_HOME", str(project / ".run" / "prefect"))
    with _one_at_a_time(project):
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
    for server in which or ALL:
        process = _running(project, server)
        if process:
            _end_tree(process, alone=server is KEEPER)
            stopped += [server.name] if server is not KEEPER else []
        _sweep(project, server)
        _state_path(project, server).unlink(missing_ok=True)
    return stopped


def revive(project: Path) -> list[str]:
    """Start again, on its old port, every server that ended though nobody stopped it; their names."""
    revived = []
    for server in (*SERVERS, WORKER, CHAT):
        with _one_at_a_time(project):
            if _state_path(project, server).is_file() and not _running(project, server):
                _start(project, server)
                _wait_until_ready(project, server)
                revived.append(server.name)
    return revived


def running(project: Path) -> dict[str, str]:
    """URL of each of the project's servers that is up, by name."""
    return {server.name: _state(project, server)["url"] for server in ALL if server.port and _running(project, server)}


def keeps(project: Path) -> bool:
    """Whether the keeper is at work."""
    return _running(project, KEEPER) is not None


def ensure_worker(project: Path) -> str:
    """Start the worker that takes runs from the work pool, the voting page and the keeper; the servers must run.

    Returns the worker's URL.
    """
    with _one_at_a_time(project):
        for server in (WORKER, CHAT, KEEPER):
            if not _running(project, server):
                _start(project, server)
                _wait_until_ready(project, server)
    return _state(project, WORKER)["url"]


@contextmanager
def _one_at_a_time(project: Path) -> Iterator[None]:
    """Two commands that start the same server at the same time would leave one of them without an owner."""
    (project / ".run").mkdir(exist_ok=True)
    with FileLock(project / ".run" / "lock"):
        yield


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
    _sweep(project, server)
    known = _state_path(project, server).is_file()  # it died: on its old port, links and clients find it again
    port = free_port(int(_state(project, server)["port"]) if known else server.port)
    line, extra = command(folder, server, port)
    with open(folder / f"{server.name}.log", "ab") as log:
        process = subprocess.Popen(
            line,
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


def command(folder: Path, server: Server, port: int) -> tuple[list[str], dict[str, str]]:
    """The command line and the extra environment of a server."""
    if server is PREFECT:
        # The UI asks its server at the address named by these variables; `--port` alone leaves it pointing at 4200.
        extra = {
            "PREFECT_HOME": str(folder / "prefect"),
            "PREFECT_SERVER_API_HOST": HOST,
            "PREFECT_SERVER_API_PORT": str(port),
            "PREFECT_SERVER_UI_API_URL": f"http://{HOST}:{port}/api",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            # By default any page that is open in a browser here might read the API's answers.
            "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": f"http://{HOST}:{port},http://localhost:{port}",
            # In memory, leases would be lost with a killed server, and the slots they hold never be given back.
            "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
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
    if server is CHAT:
        return [sys.executable, "-m", "apps.chat", str(folder.parent), str(port)], {"PYTHONPATH": _code_path()}
    if server is KEEPER:
        return [sys.executable, "-m", "deployments.keeper", str(folder.parent)], {"PYTHONPATH": _code_path()}
    store = folder / "mlflow"
    store.mkdir(exist_ok=True)
    arguments = ["--host", HOST, "--port", str(port), "--workers", "1"]
    # These two variables are MLflow's own: with them it keeps its records in PostgreSQL, its files in S3.
    own = {
        "MLFLOW_BACKEND_STORE_URI": f"sqlite:///{store / 'mlflow.db'}",
        "MLFLOW_ARTIFACTS_DESTINATION": str(store / "artifacts"),
    }
    extra = {name: os.environ.get(name) or value for name, value in own.items()}
    # Job execution would start eight more processes, 2 GB, for features that are not used here.
    extra |= {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    return [sys.executable, "-m", "mlflow", "server", *arguments], extra


def _code_path() -> str:
    """PYTHONPATH by which a process started elsewhere runs this very code."""
    here, rest = str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH")
    return os.pathsep.join(filter(None, (here, rest)))


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
    """Wait until the server answers. One whose port was taken in the meantime is started again on another."""
    deadline, attempts = time.monotonic() + PATIENCE_S, PORTS_TRIED
    log = project / ".run" / f"{server.name}.log"
    while time.monotonic() < deadline:
        state = _state(project, server)
        process, port = _running(project, server), int(state["port"])
        taken = bool(server.health) and _open(port)  # before it is asked who listens: it may begin just now
        if process is None or (taken and not _listens(process, port)):
            attempts -= 1
            if attempts == 0 or not taken:
                raise ServerFailed(f"{server.name}: its server ended at once; see {log}")
            if process is not None:
                _end_tree(process)  # it lives without the port, as Prefect's worker does
            _start(project, server)
        elif not server.health or (taken and answers(state["url"] + server.health)):
            return
        time.sleep(0.2)
    raise ServerFailed(f"{server.name}: no answer from {state['url']} within {PATIENCE_S:.0f} s; see {log}")


def _open(port: int) -> bool:
    """Whether anybody listens there. To try and bind it would be in the way of a server that does so at this moment."""
    with socket.socket() as probe:
        probe.settimeout(2)
        return probe.connect_ex((HOST, port)) == 0


def _listens(process: psutil.Process, port: int) -> bool:
    """Whether it is this process, or one it started, that listens there: two projects may have found one port free."""
    with suppress(psutil.NoSuchProcess):
        for member in (process, *process.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                try:
                    found = member.net_connections("tcp")
                except psutil.AccessDenied:
                    return True  # macOS tells it to root alone
                if any(each.status == psutil.CONN_LISTEN and each.laddr.port == port for each in found):
                    return True
    return False


def answers(url: str) -> bool:
    """Whether a GET of `url` gives 200."""
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _sweep(project: Path, server: Server) -> None:
    """Kill what a server that died left behind: processes of its session, which may still hold its port."""
    path = _state_path(project, server)
    if not path.is_file() or _running(project, server):
        return
    leader = json.loads(path.read_text())["pid"]
    if psutil.pid_exists(leader) and psutil.Process(leader).status() != psutil.STATUS_ZOMBIE:
        return  # a stranger has the number now; a number in use by a session is not given away, so nothing is left
    left = []
    for process in psutil.process_iter():
        with suppress(ProcessLookupError, PermissionError, psutil.NoSuchProcess):
            if os.getsid(process.pid) == leader:
                process.kill()
                left.append(process)
    psutil.wait_procs(left, timeout=5)


def _end_tree(process: psutil.Process, *, alone: bool = False) -> None:
    """SIGTERM to a server and its children, SIGKILL to what is left after ten seconds.

    `alone` spares the children: those of the keeper are servers that it started again.
    """
    family = [process, *([] if alone else process.children(recursive=True))]
    for member in family:
        if member.is_running():
            member.send_signal(signal.SIGTERM)
    _, alive = psutil.wait_procs(family, timeout=10)
    for member in alive:
        member.kill()
    psutil.wait_procs(alive, timeout=5)

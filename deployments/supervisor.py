"""`groundup up`: servers, work pool, deployments, automations and a worker; each step may be repeated.

`python -m deployments.supervisor PROJECT` is for containers: it prepares the servers that PREFECT_API_URL and
MLFLOW_TRACKING_URI name, and becomes the worker.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from deployments import notices, servers
from llm_core.contract import BadInput

Tell = Callable[[str], None]


def up(project: Path, tell: Tell) -> dict[str, str]:
    """Bring everything up that is not yet, telling each step; returns the URL of each server, by name."""
    notices.read_options(project)
    tell("servers")
    servers.ensure(project)
    _prepare(project, tell)
    tell("worker and keeper")
    servers.ensure_worker(project)
    return servers.running(project)


def become_worker(project: Path) -> NoReturn:
    """Prepare the servers that the environment names, and turn this process into a worker of theirs."""
    if missing := [server.variable for server in servers.SERVERS if server.variable not in os.environ]:
        raise BadInput(f"{' and '.join(missing)} must name a server; without them, use groundup up")
    _prepare(project, lambda step: print(step, flush=True))
    command, extra = servers.command(project / ".run", servers.WORKER, servers.free_port(servers.WORKER.port))
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Prefect ends its worker by it; a shell's background job ignores it
    os.execve(command[0], command, os.environ | extra)


def _prepare(project: Path, tell: Tell) -> None:
    from deployments import automations  # imports Prefect, which reads its server's address from the environment

    tell("work pool and deployments")
    automations.ensure_pool(servers.POOL)
    _deploy(project)
    tell("automations")
    automations.ensure_automations()
    automations.ensure_gpu_limit()


def _deploy(project: Path) -> None:
    """`prefect deploy --all`. Raises `ServerFailed` with what it said."""
    file = project / "deployments" / "prefect.yaml"
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all", "--prefect-file", str(file)]
    done = subprocess.run(
        command,
        cwd=project,
        env=os.environ | {"GROUNDUP_PROJECT": str(project)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        raise servers.ServerFailed(f"{file}: prefect deploy failed: {(done.stdout + done.stderr).strip()[-1000:]}")


if __name__ == "__main__":
    try:
        become_worker(Path(sys.argv[1]).resolve())
    except BadInput as error:
        print(f"groundup: {error}", file=sys.stderr)
        sys.exit(2)

"""`groundup up`: servers, work pool, deployments, automations and a worker; each step may be repeated."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from deployments import servers

Tell = Callable[[str], None]


def up(project: Path, tell: Tell) -> dict[str, str]:
    """Bring everything up that is not yet, telling each step; returns the URL of each server, by name."""
    tell("servers")
    servers.ensure(project)
    from deployments import automations  # imports Prefect, which reads its server's address from the environment

    tell("work pool and deployments")
    automations.ensure_pool(servers.POOL)
    _deploy(project)
    tell("automations")
    automations.ensure_automations()
    tell("worker")
    servers.ensure_worker(project)
    return servers.running(project)


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

"""`groundup doctor`: what is wrong with this machine and this workspace, and how to mend it. It changes nothing."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from deployments import servers
from llm_core.contract import BadInput
from tasks import session
from tasks.workspace import Workspace

LEAST_DISK_GB, LEAST_MEMORY_GB = 5.0, 3.0
OLDEST, NEWEST = (3, 11), (3, 13)


@dataclass(frozen=True)
class Finding:
    """One check: `state` is ok, warning or wrong; `remedy` says what to do, "" if nothing."""

    check: str
    state: str
    text: str
    remedy: str = ""


def examine(project: Path) -> Iterator[Finding]:
    """Every check in turn, the quick ones first."""
    yield _python()
    yield _versions(project)
    yield _disk(project)
    yield _memory()
    yield _programs()
    yield _settings(project)
    yield _lock(project)
    yield from _servers(project)
    yield _hub()
    yield _gpu()


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    if OLDEST <= sys.version_info[:2] <= NEWEST:
        return Finding("Python", "ok", version)
    return Finding("Python", "wrong", version, "use Python 3.11, 3.12 or 3.13: rm -r .venv; make install PYTHON=...")


def _versions(project: Path) -> Finding:
    """Installed packages against constraints.txt."""
    path = project / "constraints.txt"
    if not path.is_file():
        return Finding("versions", "warning", "no constraints.txt here", "take it from the project's repository")
    other = []
    for line in path.read_text().splitlines():
        name, _, wanted = line.partition("==")
        try:
            installed = metadata.version(name).partition("+")[0]
        except metadata.PackageNotFoundError:
            continue  # a package of an extra that is not installed
        if installed != wanted:
            other.append(f"{name} {installed} instead of {wanted}")
    if not other:
        return Finding("versions", "ok", "those of constraints.txt")
    return Finding("versions", "warning", ", ".join(other[:5]), "make install")


def _disk(project: Path) -> Finding:
    free = shutil.disk_usage(project).free / 1e9
    state = "ok" if free >= LEAST_DISK_GB else "wrong"
    remedy = "" if state == "ok" else f"free at least {LEAST_DISK_GB:.0f} GB"
    return Finding("disk", state, f"{free:.1f} GB free", remedy)


def _memory() -> Finding:
    free = psutil.virtual_memory().available / 1e9
    state = "ok" if free >= LEAST_MEMORY_GB else "warning"
    remedy = "" if state == "ok" else f"the default build and the servers want {LEAST_MEMORY_GB:.0f} GB together"
    return Finding("memory", state, f"{free:.1f} GB available", remedy)


def _programs() -> Finding:
    if shutil.which("git") is None:
        return Finding("programs", "warning", "no git", "install git: without it a run cannot record its commit")
    return Finding("programs", "ok", "git")


def _settings(project: Path) -> Finding:
    try:
        Workspace.at(project).configs()
    except BadInput as error:
        return Finding("params.yaml", "wrong", str(error), "correct that field")
    return Finding("params.yaml", "ok", "every section is valid")


def _lock(project: Path) -> Finding:
    """Whether somebody works in the workspace."""
    folder = project / ".groundup"
    if not folder.is_dir():
        return Finding("lock", "ok", "free")
    try:
        with FileLock(folder / "lock").acquire(timeout=0):
            return Finding("lock", "ok", "free")
    except Timeout:
        holder = session.holder_text(Workspace.at(project))
        return Finding("lock", "warning", f"held by {holder}", "wait for it, or end that process")


def _servers(project: Path) -> Iterator[Finding]:
    up = servers.running(project)
    for server in (*servers.SERVERS, servers.WORKER):
        if server.variable and (named := os.environ.get(server.variable)):
            url = named.removesuffix(server.suffix)
            well = servers.answers(url + server.health)
            remedy = "" if well else f"start it, or unset {server.variable}"
            yield Finding(server.name, "ok" if well else "wrong", f"{named} (from {server.variable})", remedy)
        elif server.name in up:
            well = servers.answers(up[server.name] + server.health)
            remedy = "" if well else f"see .run/{server.name}.log; groundup down; groundup up"
            yield Finding(server.name, "ok" if well else "wrong", up[server.name], remedy)
        else:
            taken = servers.free_port(server.port) != server.port
            text = f"not running; port {server.port} is taken, another will be used" if taken else "not running"
            yield Finding(server.name, "ok", text, "groundup up")
    if servers.WORKER.name in up and not servers.keeps(project):
        yield Finding("keeper", "warning", "not running: what dies is not started again", "groundup up")


def _hub() -> Finding:
    if os.environ.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "yes", "on"):
        return Finding(
            "hub", "warning", "HF_HUB_OFFLINE is set: only local datasets can be read", "unset HF_HUB_OFFLINE"
        )
    return Finding("hub", "ok", "datasets may be read from the Hugging Face Hub")


def _gpu() -> Finding:
    """A card without a torch that can use it is the usual mistake. torch itself is not imported: that takes seconds."""
    card = Path("/proc/driver/nvidia/version").exists()
    build = metadata.version("torch") if find_spec("torch") else "absent"
    if card and "+cpu" in build:
        return Finding("GPU", "wrong", f"an NVIDIA card, but torch {build}", "make install TORCH_INDEX=https://...")
    return Finding("GPU", "ok", f"{'NVIDIA card' if card else 'none'}, torch {build}")

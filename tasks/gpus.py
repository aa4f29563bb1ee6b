"""Who may use which GPU: a limit in Prefect between runs, and below it a file lock for each card of the machine.

The limit `gpu` makes runs wait where Prefect's page shows it; a killed run's slots come back when its lease ends. The
locks are what exclusion rests on, for they also hold for `dvc repro` by hand; the kernel drops them with their process.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

LIMIT = "gpu"
"""Name of Prefect's global concurrency limit; a slot is a card."""
LEASE_S = 60.0
"""A slot whose run was killed is free again after at most this time; Prefect renews the lease of a living one."""
ALL = "all"
"""Stands for the cards of a machine that has some but cannot name them."""
VISIBLE = "CUDA_VISIBLE_DEVICES"
POLL_S = 0.5


def cards() -> list[str]:
    """Names of the NVIDIA cards that this process may use: those of CUDA_VISIBLE_DEVICES, else the driver's UUIDs."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return [ALL] if Path("/proc/driver/nvidia/version").exists() else []
    command = [program, "--query-gpu=uuid", "--format=csv,noheader"]
    told = subprocess.run(command, capture_output=True, text=True, timeout=60)
    found = told.stdout.split() if told.returncode == 0 else []
    named = os.environ.get(VISIBLE)
    return found if named is None or not found else [name for name in named.split(",") if name and name != "-1"]


def needed(config: Any) -> int:
    """How many cards a stage with this Config takes on this machine; 0 for one that stays on the CPU."""
    if getattr(config, "device", "cpu") == "cpu" or not (found := cards()):
        return 0
    ranks = getattr(config, "ranks", 1) or len(found)
    return min(int(ranks), len(found))


@contextmanager
def hold(count: int, say: Callable[[str], None] | None, check: Callable[[], None]) -> Iterator[list[str]]:
    """Lock `count` cards for this process and let CUDA see only these; their names.

    While it waits, `say` is told for whom, once, and `check` is called twice a second: it may raise to give up.
    """
    if not count:
        yield []
        return
    names = cards()
    while (locks := _take(names, count)) is None:
        if say is not None:
            say(f"waits for a GPU: {_holders(names)}")
            say = None
        check()
        time.sleep(POLL_S)
    before, chosen = os.environ.get(VISIBLE), list(locks)
    if chosen != [ALL]:
        os.environ[VISIBLE] = ",".join(chosen)
    try:
        yield chosen
    finally:
        for lock in locks.values():
            lock.release()
        os.environ.pop(VISIBLE, None)
        os.environ.update({VISIBLE: before} if before is not None else {})


def _take(names: list[str], count: int) -> dict[str, FileLock] | None:
    """Locks of `count` cards that nobody holds, or none at all: who waits holds nothing that another waits for."""
    taken: dict[str, FileLock] = {}
    for name in names:
        lock = FileLock(_path(name, ".lock"), mode=0o666)
        with suppress(Timeout):
            lock.acquire(timeout=0)
            taken[name] = lock
        if len(taken) == count:
            for mine in taken:
                _path(mine, ".json").write_text(json.dumps({"pid": os.getpid(), "workspace": str(Path.cwd())}))
            return taken
    for lock in taken.values():
        lock.release()
    return None


def _path(name: str, suffix: str) -> Path:
    """A file of the card, the same for all users of the machine."""
    folder = Path(tempfile.gettempdir()) / "groundup-gpus"
    if not folder.is_dir():
        folder.mkdir(exist_ok=True)
        folder.chmod(0o1777)  # as /tmp itself: everybody locks, nobody removes another's file
    return folder / (name.replace("/", "_") + suffix)


def _holders(names: list[str]) -> str:
    """Which process held which card last, in words."""
    found = [(name, json.loads(_path(name, ".json").read_text())) for name in names if _path(name, ".json").is_file()]
    return "; ".join(f"{name} is held by process {about['pid']} in {about['workspace']}" for name, about in found)


@contextmanager
def slots(count: int, waits: Callable[[str], None]) -> Iterator[None]:
    """Slots of Prefect's limit, if it has it; `waits` is told when they are not there at once."""
    if not count:
        yield
        return
    from prefect.client.orchestration import get_client
    from prefect.concurrency.sync import concurrency
    from prefect.exceptions import ObjectNotFound

    with get_client(sync_client=True) as client:
        try:
            limit = client.read_global_concurrency_limit_by_name(LIMIT)
            if limit.active and limit.active_slots + count > limit.limit:
                waits(f"waits for a GPU: {limit.active_slots} of {limit.limit} slots of the limit `{LIMIT}` are taken")
        except ObjectNotFound:
            pass  # `groundup up` makes the limit; without it the cards' locks suffice
    with concurrency(LIMIT, occupy=count, lease_duration=LEASE_S, strict=False):
        yield

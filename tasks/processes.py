"""Processes that end when they should: children die with their parent, and a whole group is ended by one call."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

PR_SET_PDEATHSIG = 1
GRACE_S = 10.0


def die_with_parent() -> None:
    """Ask Linux to send this process SIGTERM when its parent ends; elsewhere nothing happens."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def group_alive(group: int) -> bool:
    """Whether any process of the group is left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def end_group(process: subprocess.Popen[bytes], grace_s: float = GRACE_S) -> None:
    """SIGTERM to the group that `process` leads, SIGKILL after `grace_s`; returns when the whole group is gone."""
    for sign, patience in ((signal.SIGTERM, grace_s), (signal.SIGKILL, 5.0)):
        if not group_alive(process.pid):
            break
        os.killpg(process.pid, sign)
        deadline = time.monotonic() + patience
        while group_alive(process.pid) and time.monotonic() < deadline:
            process.poll()  # a zombie child would keep the group alive
            time.sleep(0.05)
    process.wait()


@contextmanager
def alone(path: Path, say: Callable[[str], None], check: Callable[[], None]) -> Iterator[None]:
    """Hold the lock file `path`. While another process has it, `say` is told once; `check` may raise to give up.

    A killed run's stage may still be saving when the next run starts the same work.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock, told = FileLock(path), False
    while True:
        try:
            lock.acquire(timeout=0.2)
            break
        except Timeout:
            if not told:
                say("waits for an earlier attempt, which is still ending")
                told = True
            check()
    try:
        yield
    finally:
        lock.release()

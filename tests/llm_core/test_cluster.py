"""The crew of processes on this machine. Dask's is tested in tests/scale."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from llm_core.cluster import Crew, crew


def who(_: int) -> int:
    """The process that did it."""
    time.sleep(0.02)
    return os.getpid()


def test_processes_are_started_once_and_end_with_the_stage() -> None:
    with crew("processes", workers=2) as workers:
        first = set(workers.map(who, range(20), units=lambda _: 1))
        second = set(workers.map(who, range(20), units=lambda _: 1))
        assert 1 <= len(first | second) <= 2
        assert os.getpid() not in first | second
        assert first & second
    assert not any(map(psutil.pid_exists, first | second))


def test_one_worker_is_this_process() -> None:
    assert set(Crew(1).map(who, range(3), units=lambda _: 1)) == {os.getpid()}


def test_work_that_is_given_up_does_not_hold_the_next() -> None:
    with crew("processes", workers=2) as workers:
        some = workers.map(who, range(1_000), units=lambda _: 1)
        next(iter(some))
        some.close()  # type: ignore[attr-defined]
        began = time.monotonic()
        assert len(list(workers.map(who, range(4), units=lambda _: 1))) == 4
        assert time.monotonic() - began < 5


STAGE = """
import sys, time
from llm_core.cluster import crew
sys.path.insert(0, sys.argv[1])
from test_cluster import who
with crew("processes", workers=2) as workers:
    print(*set(workers.map(who, range(20), units=lambda _: 1)), flush=True)
    time.sleep(600)
"""


def test_workers_without_work_end_with_a_stage_that_is_killed() -> None:
    """They wait on a pipe whose other end they hold themselves."""
    command = [sys.executable, "-c", STAGE, str(Path(__file__).parent)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as stage:
        assert stage.stdout is not None
        workers = [int(word) for word in stage.stdout.readline().split()]
        assert workers
        assert all(map(psutil.pid_exists, workers))
        stage.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 60
    while any(map(psutil.pid_exists, workers)):
        assert time.monotonic() < deadline, "they live on"
        time.sleep(0.05)

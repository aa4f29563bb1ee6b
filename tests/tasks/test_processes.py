"""Nothing we start outlives us."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import psutil

from tasks import processes

STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"


def start(code: str) -> subprocess.Popen[bytes]:
    child = subprocess.Popen([sys.executable, "-c", code], start_new_session=True, stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    return child


def test_a_willing_group_ends_by_sigterm() -> None:
    child = start("import time; print('up', flush=True); time.sleep(60)")
    processes.end_group(child)
    assert child.returncode == -signal.SIGTERM


def test_a_stubborn_group_and_its_children_are_killed() -> None:
    code = f"import subprocess, sys; c = subprocess.Popen([sys.executable, '-c', {STUBBORN!r}]); c.wait()"
    child = start(code)
    family = [child.pid, *(p.pid for p in psutil.Process(child.pid).children(recursive=True))]
    assert len(family) == 2
    processes.end_group(child, grace_s=0.5)
    assert not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in family)


def test_a_child_dies_with_its_parent() -> None:
    code = (
        "import subprocess, sys, time; from tasks import processes\n"
        "c = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'],"
        " preexec_fn=processes.die_with_parent)\n"
        "print(c.pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True)
    assert parent.stdout is not None
    orphan = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 60
    while orphan.is_running() and orphan.status() != "zombie" and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not orphan.is_running() or orphan.status() == "zombie"

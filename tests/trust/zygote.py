"""Runs stages with faults, each in a fork of one process that has imported everything: no test pays for torch again.

It reads a JSON line {workspace, stage, environment, faults}, forks, runs `tasks.run.main` there, and answers with a
line {code, said}: code is the exit code, or minus the signal. `faults` are names of functions below and their argument.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import random
import resource
import sys
import time
from pathlib import Path
from typing import Any

CAPABILITIES = 0x20080522  # _LINUX_CAPABILITY_VERSION_3
PR_SET_SECUREBITS, SECBIT_NOROOT = 28, 1


def largest_file(limit: int) -> None:
    """A full disk: what grows a file beyond `limit` bytes fails."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


def no_privileges(_: Any) -> None:
    """Root, too, must ask before it writes into a read-only directory."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_SECUREBITS, SECBIT_NOROOT, 0, 0, 0)
    header, none = (ctypes.c_uint32 * 2)(CAPABILITIES, 0), (ctypes.c_uint32 * 6)()
    if os.geteuid() == 0 and libc.capset(header, none) != 0:
        raise OSError(ctypes.get_errno(), "capset")


def jumping_clock(seed: int) -> None:
    """The time of day jumps by up to a day, forwards or backwards, whenever somebody looks."""
    chance, now, now_ns = random.Random(seed), time.time, time.time_ns
    time.time = lambda: now() + chance.uniform(-86400, 86400)
    time.time_ns = lambda: now_ns() + chance.randrange(-86400, 86400) * 10**9


def little_memory(extra: int) -> None:
    """The address space may grow by so many bytes and no more."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + extra, used + extra))


FAULTS = {fault.__name__: fault for fault in (largest_file, no_privileges, jumping_clock, little_memory)}


def child(job: dict[str, Any], said: int) -> int:
    """What the fork does; the stage's exit code."""
    from tasks import run

    os.dup2(said, 1)
    os.dup2(said, 2)
    os.chdir(job["workspace"])
    os.environ.update(job["environment"])
    for name, argument in job["faults"].items():
        FAULTS[name](argument)
    return run.main([job["stage"]])


def perform(job: dict[str, Any]) -> dict[str, Any]:
    """Fork, and wait for the child's end; {code, said}."""
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(ours)
        code = 99
        try:
            code = child(job, theirs)
        finally:
            sys.stdout.flush()
            os._exit(code)
    os.close(theirs)
    with open(ours, errors="replace") as said:
        text = said.read()
    _, status = os.waitpid(pid, 0)
    return {"code": os.waitstatus_to_exitcode(status), "said": text}


def main() -> None:
    """Serve until the input ends."""
    import torch

    from llm_core.pipeline import PIPELINE

    torch.set_num_threads(1)
    for row in PIPELINE:
        importlib.import_module(row.module)
    importlib.import_module("tasks.run")
    for line in sys.stdin:
        print(json.dumps(perform(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()

"""A machine that lends its ranks to the trainings of a workspace: `python -m llm_core.train.join WORKSPACE [--once]`.

It waits for a job that wants several machines, starts its own torchrun for it, and waits for the next: what the other
machines of a Slurm job or of a Prefect run do. The workspace must be there under the same path. A job's file stands in
the workspace as long as machines may join; when it is gone or another one's, what was started for it ends.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from llm_core.train.launch import JOB, die_with_parent, end

LOOK_S = 0.5
GRACE_S = 40.0
"""torchrun gives its ranks 30 seconds to save."""


def newest(workspace: Path) -> tuple[Path, dict[str, Any]] | None:
    """The job of the workspace that wants several machines, and its file; the newest if there are two."""
    found = []
    inside = f".groundup/scratch/*/ranks/{JOB}"
    for path in (*workspace.glob(inside), *workspace.glob(f"runs/*/{inside}")):  # experiments, too
        try:
            found.append((path.stat().st_mtime, path, json.loads(path.read_text())))
        except OSError:
            continue  # it ended between two looks
    wanted = [(path, job) for _, path, job in sorted(found, key=lambda each: each[0]) if job["start"]["nodes"] > 1]
    return wanted[-1] if wanted else None


def is_on(path: Path, number: str) -> bool:
    """Whether the job of this number may still be joined."""
    try:
        return bool(json.loads(path.read_text())["id"] == number)
    except OSError:
        return False


def lend(path: Path, job: dict[str, Any]) -> int:
    """Take part in the job until it is over; torchrun's exit code."""
    child = subprocess.Popen(
        [sys.executable, "-m", "llm_core.train.agent", str(path)],
        stdin=subprocess.DEVNULL,
        preexec_fn=die_with_parent,
    )
    try:
        while child.poll() is None and is_on(path, job["id"]):
            time.sleep(LOOK_S)
    finally:
        end(child, GRACE_S)
    return child.returncode


def main(arguments: list[str]) -> int:
    """Lend this machine's ranks until SIGTERM, or with --once for one job."""
    workspace, once = Path(arguments[0]).resolve(), "--once" in arguments
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    lent = ""
    while True:
        found = newest(workspace)
        if once and lent and (found is None or found[1]["id"] != lent):
            return 0
        if found is not None:
            path, job = found
            lent = job["id"]
            print(f"joins {job['stage']} at {job['endpoint']} with {job['start']['ranks']} ranks", flush=True)
            code = lend(path, job)
            print(f"{job['stage']} is over here, with code {code}", flush=True)
            while code != 0 and is_on(path, job["id"]):  # the host has yet to hear of it
                time.sleep(LOOK_S)
        time.sleep(LOOK_S)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

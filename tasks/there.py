"""The far side of a placed stage: `python -m tasks.there STAGE [--force] [--refresh]` in the workspace, as Slurm's job.

A run in a work pool calls `carry_out` instead (`flows/stage.py`). Either starts DVC's child on this machine, writes who
it is into the stage's log and events, and ends the child when the build that waits for it is gone or has had enough.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from pathlib import Path
from types import FrameType

from llm_core.contract import BadInput
from llm_core.pipeline import stage
from tasks import children
from tasks.children import Order
from tasks.workspace import Workspace

POLL_S = 0.2
STOPPED = 143


def carry_out(order: Order, where: str) -> int:
    """Run the stage on this machine; DVC's exit code, or 143 if it was stopped. `where` names this place for people."""
    told = f"runs on {socket.gethostname()}, {where}"
    children.note(order, told)
    with open(order.space.log(order.verb), "a") as log:
        log.write(f"{order.verb} {told}\n")
    build, child = children.Sign(order, "build"), children.Here(order)
    try:
        while (code := child.poll()) is None:
            if build.read() == children.STOP or build.silent_for() > children.LOST_S:
                return STOPPED
            time.sleep(POLL_S)
        return code
    finally:
        child.end()


def main(arguments: list[str]) -> int:
    """Run the stage that is named; its exit code."""

    def stop(_: int, __: FrameType | None) -> None:
        sys.exit(STOPPED)

    signal.signal(signal.SIGTERM, stop)
    try:
        verb = stage(arguments[0]).verb
        order = Order(Workspace.at(Path.cwd()), verb, "--force" in arguments, "--refresh" in arguments)
        with children.living(order):
            return carry_out(order, f"job {os.environ.get('SLURM_JOB_ID', '?')} of Slurm")
    except BadInput as error:
        print(f"groundup: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""A stage as a job of Slurm: `sbatch --wait` of a script that runs `python -m tasks.there STAGE` in the workspace."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time

from llm_core.settings.placement import PlaceSettings
from tasks import children, processes
from tasks.children import Order
from tasks.workspace import Workspace

SAVE_S = 15.0
"""How long a job that is told to stop may take to save before Slurm is asked to cancel it."""


def check(space: Workspace, verb: str, place: PlaceSettings) -> None:
    """Raise `BadInput` if jobs cannot be submitted from here, or the script is not there."""
    if shutil.which("sbatch") is None:
        raise children.refuse(verb, "slurm", "this machine has no sbatch; start the build where Slurm takes jobs")
    if not (space.project / place.script).is_file():
        raise children.refuse(verb, "script", f"{space.project / place.script} is not there")


class Job:
    """A job that was submitted; sbatch waits for it and ends with its exit code."""

    def __init__(self, order: Order, place: PlaceSettings) -> None:
        check(order.space, order.verb, place)
        self.order, self.words, self.number = order, "", ""
        self.build = children.Sign(order, "build")
        self.build.give()
        flags = [flag for flag, is_set in (("--force", order.force), ("--refresh", order.refresh)) if is_set]
        log = order.space.log(order.verb)
        command = [
            "sbatch", "--wait", "--parsable", f"--job-name=groundup-{order.verb}",
            f"--output={log.with_suffix('.slurm.log')}", *(place.slurm or ()), str(order.space.project / place.script),
            order.verb, *flags,
        ]  # fmt: skip
        self.errors = log.with_suffix(".sbatch.log")
        with open(self.errors, "wb") as errors:
            self.process = subprocess.Popen(
                command,
                cwd=order.space.root,
                env=os.environ | {"GROUNDUP_PYTHON": sys.executable},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                preexec_fn=processes.die_with_parent,
            )
        assert self.process.stdout is not None
        self.number = self.process.stdout.readline().strip().partition(";")[0]
        if self.number:
            children.note(order, f"is job {self.number} of Slurm")

    def poll(self) -> int | None:
        """The job's exit code once it has ended."""
        self.build.give()
        code = self.process.poll()
        if code and not self.words:
            told = self.errors.read_text(errors="replace").strip().splitlines()
            self.words = f"Slurm's job {self.number} ended with code {code}" if self.number else "sbatch took no job"
            self.words += f": {told[-1]}" if told else ""
        return code

    def end(self) -> None:
        """Let the job save and end; cancel it if it does not."""
        if self.process.poll() is None:
            self.build.stop()
            deadline = time.monotonic() + SAVE_S
            while self.process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.1)
        if self.process.poll() is None:
            if self.number:
                subprocess.run(["scancel", self.number], stdin=subprocess.DEVNULL, capture_output=True)
            self.process.terminate()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()

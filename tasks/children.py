"""A stage as a child of the build that wants it: what both sides of one share, wherever it runs.

Build and stage each count in a file of the workspace as a sign of life. A stage whose build is gone saves and ends; a
build whose stage is gone says so. Of the two only changes are looked at: their machines' clocks may differ.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from llm_core.artifacts import write_atomic
from llm_core.contract import BadInput
from tasks import processes
from tasks.record import REFRESH
from tasks.workspace import Workspace

LOST_S = 120.0
"""Seconds without a sign of life after which the other side counts as gone."""
COUNT_S = 2.0
STOP = "stop"


class StageFailed(RuntimeError):
    """A stage ended with an error; the message is the stage's own sentence and where its log is."""


class Child(Protocol):
    """A stage that runs somewhere; `words` says what became of it where its events do not."""

    words: str

    def poll(self) -> int | None: ...
    def end(self) -> None: ...


@dataclass(frozen=True)
class Order:
    """What is to be run: a stage of a workspace; `force` though it is fresh, `refresh` asks its sources again."""

    space: Workspace
    verb: str
    force: bool = False
    refresh: bool = False


class Here:
    """A child process of this one: DVC, which restores the product from its cache or runs the stage."""

    words = ""

    def __init__(self, order: Order) -> None:
        events, log = order.space.events(order.verb), order.space.log(order.verb)
        command = [sys.executable, "-m", "dvc", "repro", "--single-item", *(["--force"] if order.force else [])]
        with open(log, "ab") as output:
            self.process = subprocess.Popen(
                [*command, order.verb],
                cwd=order.space.root,
                env=child_environment(events) | ({REFRESH: order.verb} if order.refresh else {}),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=processes.die_with_parent,
            )

    def poll(self) -> int | None:
        """The exit code once it has ended."""
        return self.process.poll()

    def end(self) -> None:
        """End it and all that it started, if it runs: SIGTERM, then SIGKILL."""
        if self.process.poll() is None:
            processes.end_group(self.process)


def child_environment(events: Path) -> dict[str, str]:
    """This process's environment with the virtual environment's programs first, and where to tell events."""
    programs = str(Path(sys.executable).parent)
    path = os.environ.get("PATH", os.defpath)
    return os.environ | {
        "GROUNDUP_EVENTS": str(events),
        "PATH": path if path.startswith(programs) else f"{programs}{os.pathsep}{path}",
        "DVC_NO_ANALYTICS": "1",
    }


def note(order: Order, text: str) -> None:
    """A line among the stage's events, before the stage itself begins to write there."""
    with open(order.space.events(order.verb), "a") as handle:
        handle.write(json.dumps({"event": "note", "text": text}) + "\n")


class Sign:
    """A file in the workspace by which one side shows the other that it lives; `side` is build or stage."""

    def __init__(self, order: Order, side: str) -> None:
        self.path = order.space.root / ".groundup" / "places" / f"{order.verb}.{side}"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._count, self._next = 0, 0.0
        self._seen, self._since = "", time.monotonic()

    def give(self) -> None:
        """Count on, every other second."""
        if time.monotonic() >= self._next:
            self._count, self._next = self._count + 1, time.monotonic() + COUNT_S
            write_atomic(self.path, f"{os.getpid()} {self._count}".encode())

    def stop(self) -> None:
        """Ask the other side to end."""
        write_atomic(self.path, STOP.encode())

    def read(self) -> str:
        """What stands there."""
        try:
            return self.path.read_text()
        except OSError:
            return ""

    def silent_for(self) -> float:
        """Seconds since it changed, as seen from here: clocks of two machines are not compared."""
        now = self.read()
        if now != self._seen:
            self._seen, self._since = now, time.monotonic()
        return time.monotonic() - self._since


@contextmanager
def living(order: Order) -> Iterator[None]:
    """Inside, the far side of a stage gives its sign of life, whatever it waits for."""
    sign, ended = Sign(order, "stage"), threading.Event()

    def give() -> None:
        while not ended.is_set():
            sign.give()
            ended.wait(COUNT_S / 2)

    thread = threading.Thread(target=give, name="sign", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def refuse(verb: str, what: str, why: str) -> BadInput:
    """The sentence about a place that cannot be used."""
    return BadInput(f"placement.{verb}.{what}: {why}")

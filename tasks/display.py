"""How a run is shown: live bars in a terminal, log lines elsewhere, and Prefect progress artifacts beside both."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

LINE_EVERY_S = 10.0
ARTIFACT_EVERY_S = 3.0
MARKS = {"fresh": "=", "restored": "<", "ran": "+", "skipped": "-"}


def figures_text(event: dict[str, Any]) -> str:
    """The figures of a progress event, for example `1,200/2,000 steps  loss 2.31  tokens/s 8,100`."""
    total = f"/{event['total']:,.0f}" if event["total"] else ""
    parts = [f"{event['done']:,.0f}{total} {event['unit']}"]
    for name, value in event["figures"].items():
        parts.append(f"{name} {value:,.4g}" if isinstance(value, int | float) and abs(value) < 1000
                     else f"{name} {value:,.0f}" if isinstance(value, int | float) else f"{name} {value}")  # fmt: skip
    return "  ".join(parts)


class TerminalDisplay:
    """One live bar for the stage that runs; a line for each stage that ended; plain lines without a terminal."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(file=sys.stderr)
        name, text = TextColumn("{task.description:9}"), TextColumn("{task.fields[text]}")
        columns = (SpinnerColumn(), name, BarColumn(24), text, TimeElapsedColumn())
        self.bars = Progress(*columns, console=self.console, transient=True) if self.console.is_terminal else None
        self.bar: Any = None
        self.last_line = 0.0
        self.artifact = PrefectProgress()

    def begin(self, verb: str, why: list[str]) -> None:
        reason = why[0] + (f" (and {len(why) - 1} more)" if len(why) > 1 else "")
        self.console.print(f"[dim]  {verb:9} {reason}[/dim]", highlight=False)
        if self.bars is not None:
            self.bars.start()
            self.bar = self.bars.add_task(verb, total=None, text="starting")
        self.last_line = time.monotonic()
        self.artifact.begin(verb)

    def event(self, verb: str, event: dict[str, Any]) -> None:
        match event["event"]:
            case "progress":
                self._progress(verb, event)
            case "note":
                self.console.print(f"  {verb:9} {event['text']}", highlight=False, markup=False)

    def _progress(self, verb: str, event: dict[str, Any]) -> None:
        text = figures_text(event)
        self.artifact.update(event, text)
        if self.bars is not None:
            self.bars.update(self.bar, completed=event["done"], total=event["total"], text=text)
        elif time.monotonic() - self.last_line >= LINE_EVERY_S:
            self.console.print(f"  {verb:9} {text}", highlight=False, markup=False)
            self.last_line = time.monotonic()

    def end(self, verb: str, outcome: str, seconds: float) -> None:
        if self.bars is not None and self.bar is not None:
            self.bars.remove_task(self.bar)
            self.bars.stop()
            self.bar = None
        took = f"{seconds:7.1f} s" if seconds else ""
        self.console.print(f"{MARKS.get(outcome, ' ')} {verb:9} {outcome:9}{took}", highlight=False, markup=False)

    def close(self) -> None:
        """Give the terminal back, whatever happened."""
        if self.bars is not None:
            self.bars.stop()


class PrefectProgress:
    """The same figures as a Prefect progress artifact of the running task; without a Prefect run it does nothing."""

    def __init__(self) -> None:
        self.id: Any = None
        self.last = 0.0

    def begin(self, verb: str) -> None:
        from prefect.context import TaskRunContext

        self.id, self.last = None, 0.0
        if TaskRunContext.get() is not None:
            from prefect.artifacts import create_progress_artifact

            with _shown_if_possible():
                self.id = create_progress_artifact(progress=0.0, key=f"progress-{verb}", description=verb)

    def update(self, event: dict[str, Any], text: str) -> None:
        """At most every few seconds: a call to the server takes tens of milliseconds."""
        if self.id is None or time.monotonic() - self.last < ARTIFACT_EVERY_S or not event["total"]:
            return
        from prefect.artifacts import update_progress_artifact

        with _shown_if_possible():
            update_progress_artifact(self.id, progress=100.0 * event["done"] / event["total"], description=text)
        self.last = time.monotonic()


@contextmanager
def _shown_if_possible() -> Iterator[None]:
    """A bar that the server does not take is no reason to stop a training."""
    from prefect.logging import get_run_logger

    try:
        yield
    except Exception as error:
        get_run_logger().warning("progress was not shown: %s", error)

"""perform(stage): fresh? leave it. Else let DVC run or restore it in a child process, and show how it goes.

The child is `dvc repro --single-item STAGE`, so both doors do the same by construction. It runs here, in a process
group of its own, or where the settings place it (`places.py`); whatever ends this process ends it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from llm_core.contract import BadInput
from llm_core.pipeline import stage
from tasks import damage, places
from tasks.children import Child, Order, StageFailed, child_environment
from tasks.freshness import Freshness
from tasks.workspace import Workspace

__all__ = ["Display", "Outcome", "StageFailed", "child_environment", "perform"]

POLL_S = 0.1


class Display(Protocol):
    """Who shows a stage's progress to people."""

    def begin(self, verb: str, why: list[str]) -> None: ...
    def event(self, verb: str, event: dict[str, Any]) -> None: ...
    def end(self, verb: str, outcome: str, seconds: float) -> None: ...


@dataclass(frozen=True)
class Outcome:
    """What became of a stage: `fresh`, `restored` (from the cache, nothing ran) or `ran`; seconds of wall clock."""

    state: str
    seconds: float = 0.0


def perform(
    space: Workspace, verb: str, freshness: Freshness, display: Display, *, force: bool = False, refresh: bool = False
) -> Outcome:
    """Bring one stage's product up to date; `force` runs it though it is fresh, `refresh` asks its sources again.

    Raises `StageFailed`, or `BadInput` if the stage was given bad input.
    """
    why = freshness.why_stale(verb) or (["refresh"] if refresh else ["forced"] if force else [])
    if not why:
        display.end(verb, "fresh", 0.0)
        return Outcome("fresh")
    display.begin(verb, why)
    damage.drop_damaged(space, stage(verb), listings_only=not force)
    if force:
        space.drop_finished_scratch(stage(verb))  # else its last resume point would be taken for the work asked for
    began = time.monotonic()
    started = _run_child(space, verb, display, force=force or refresh, refresh=refresh)
    if damage.mended(space, stage(verb)):  # DVC linked a damaged object of its cache; that is gone, so it is made anew
        started = _run_child(space, verb, display, force=False, refresh=refresh)
        damage.check(space, stage(verb).makes)
    outcome = Outcome("ran" if started else "restored", time.monotonic() - began)
    freshness.changed(verb)
    display.end(verb, outcome.state, outcome.seconds)
    return outcome


def _run_child(space: Workspace, verb: str, display: Display, *, force: bool, refresh: bool) -> bool:
    """Run DVC's child to its end, showing its events; whether the stage itself ran."""
    events, log = space.events(verb), space.log(verb)
    for path in (events, log):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    child = places.start(Order(space, verb, force, refresh))
    seen: list[dict[str, Any]] = []
    try:
        for event in _follow(events, child):
            seen.append(event)
            display.event(verb, event)
    finally:
        child.end()
    if child.poll() != 0:
        raise _failure(verb, seen, log, child.words)
    return any(event["event"] == "started" for event in seen)


def _follow(events: Path, child: Child) -> Iterator[dict[str, Any]]:
    """Whole lines of the growing events file, until the child has ended and all are read."""
    with open(events) as handle:
        partial = ""
        while True:
            ended = child.poll() is not None
            while line := handle.readline():
                partial += line
                if partial.endswith("\n"):
                    yield json.loads(partial)
                    partial = ""
            if ended:
                return
            time.sleep(POLL_S)


def _failure(verb: str, seen: list[dict[str, Any]], log: Path, words: str) -> Exception:
    told = [event for event in seen if event["event"] == "failed"]
    if told and told[-1]["code"] == 2:
        return BadInput(told[-1]["text"])
    errors = [line for line in log.read_text(errors="replace").splitlines() if line.startswith("ERROR")]
    text = told[-1]["text"] if told else errors[0] if errors else words or "ended without a word"
    return StageFailed(f"{verb}: {text} (log: {log})")

"""One run over a workspace: its lock, what is stale, what was asked for, and what became of each stage."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from llm_core import artifacts
from llm_core.contract import BadInput
from llm_core.pipeline import PIPELINE, stage
from tasks import experiments, freshness, places, runner
from tasks.display import TerminalDisplay
from tasks.runner import Outcome
from tasks.stores import seed_stores
from tasks.workspace import Workspace


@dataclass
class Session:
    """State of one run; `wanted` are the stages asked for and all they need, `forced` run even if fresh.

    With `refresh` acquire asks its sources again; `raw_before` is the digest of raw when the run began.
    """

    space: Workspace
    wanted: frozenset[str]
    forced: frozenset[str]
    fresh: freshness.Freshness
    display: TerminalDisplay
    refresh: bool = False
    raw_before: str | None = None
    outcomes: dict[str, Outcome] = field(default_factory=dict)

    @property
    def states(self) -> dict[str, str]:
        """What became of each stage so far: fresh, restored, ran or skipped."""
        return {verb: outcome.state for verb, outcome in self.outcomes.items()}

    def stale(self, verb: str) -> bool:
        """Whether `perform` would run or restore the stage."""
        return verb in self.wanted and (verb in self.forced or bool(self.fresh.why_stale(verb)))

    def say(self, text: str) -> None:
        """A line in the terminal and in the log on the run's page."""
        from prefect.logging import get_run_logger

        self.display.console.print(text, markup=False)
        get_run_logger().info(text)

    def perform(self, verb: str) -> Outcome:
        """Bring one stage up to date, unless it was not asked for."""
        if verb in self.wanted:
            refresh, force = self.refresh and verb == "acquire", verb in self.forced
            if refresh:
                seed_stores(self.space)
            outcome = runner.perform(self.space, verb, self.fresh, self.display, force=force, refresh=refresh)
        else:
            outcome = Outcome("skipped")
        self.outcomes[verb] = outcome
        return outcome

    def search_shards(self) -> None:
        """Show that new shards hold nothing of what the forget list names; what was found stands in a report."""
        from llm_core.data import forget_list
        from tasks import forget  # a run with nothing to do has no need of what this imports

        listed = forget_list.read(self.space.root / forget.LIST)
        if listed.documents:
            proof = forget.prove(self.space, everywhere=False)
            artifacts.write_atomic(self.space.report("forget"), artifacts.dump_json(proof))
            told = "hold some of it: see reports/forget.json" if proof["found"] else "hold none of it"
            self.say(f"forget.txt: shards searched for {len(listed.documents)} documents; they {told}")


def with_needs(verbs: Sequence[str]) -> frozenset[str]:
    """The stages named and every stage whose product they need, directly or not; all stages if none is named."""
    if not verbs:
        return frozenset(row.verb for row in PIPELINE)
    wanted = {stage(verb).verb for verb in verbs}
    for row in reversed(PIPELINE):
        if row.verb in wanted:
            wanted |= {maker.verb for maker in PIPELINE if maker.makes in row.needs}
    return frozenset(wanted)


@contextmanager
def open_session(
    root: Path,
    verbs: Sequence[str] = (),
    force: Sequence[str] = (),
    *,
    preset: str | None = None,
    settings: Mapping[str, Any] | None = None,
    refresh: bool = False,
) -> Iterator[Session]:
    """Check all settings, lock the workspace, ask what is stale. Raises `BadInput` before anything has started.

    A `preset` or `settings` (sections of params.yaml) lead to an experiment's workspace beside `root`.
    """
    from prefect.runtime import flow_run

    space = Workspace.at(Path(root))  # from Prefect's page it comes as text
    if preset or settings:
        space = experiments.beside(space.project, preset, dict(settings or {}))
    space.configs()
    os.environ["GROUNDUP_BUILD"] = str(flow_run.id or "")  # joins the stages' MLflow runs
    wanted, forced = with_needs(verbs), frozenset(stage(verb).verb for verb in force)
    places.check(space, wanted | forced)
    display = TerminalDisplay()
    with _locked(space, display):
        session = Session(space, wanted | forced, forced, freshness.Freshness(space), display, refresh)
        if refresh and space.product("raw").exists():
            session.raw_before = artifacts.digest(space.product("raw"))
        try:
            yield session
        finally:
            display.close()
            if ran := [verb for verb, outcome in session.outcomes.items() if outcome.state == "ran"]:
                freshness.relink(space, ran)


@contextmanager
def _locked(space: Workspace, display: TerminalDisplay) -> Iterator[None]:
    """The workspace's lock; says who holds it while it waits."""
    from prefect.runtime import flow_run

    from tasks import waiting

    folder = space.root / ".groundup"
    folder.mkdir(exist_ok=True)
    lock, holder = FileLock(folder / "lock"), folder / "lock-holder.json"
    try:
        lock.acquire(timeout=0)
    except Timeout:
        why = f"{space.root} is in use by {holder_text(space)}; waiting for it to end"
        display.console.print(why, markup=False)
        goes_on = waiting.on_page(why)
        lock.acquire()
        goes_on()
    try:
        about = {"pid": os.getpid(), "run": flow_run.name, "since": time.strftime("%H:%M:%S")}
        artifacts.write_atomic(holder, artifacts.dump_json(about))
        yield
    finally:
        holder.unlink(missing_ok=True)
        lock.release()


@contextmanager
def hold(space: Workspace, then: str) -> Iterator[None]:
    """The workspace's lock for work that does not wait: `BadInput` says who has it, and to do `then`."""
    folder = space.root / ".groundup"
    folder.mkdir(exist_ok=True)
    try:
        held = FileLock(folder / "lock").acquire(timeout=0)
    except Timeout:
        raise BadInput(f"{space.root} is in use by {holder_text(space)}; {then}") from None
    with held:
        yield


def holder_text(space: Workspace) -> str:
    """Who holds the workspace's lock, in words."""
    path = space.root / ".groundup" / "lock-holder.json"
    if not path.is_file():
        return "another run"
    holder = json.loads(path.read_text())
    name = f"run {holder['run']} of " if holder.get("run") else ""
    return f"{name}process {holder['pid']}, which began at {holder['since']}"

"""`python -m tasks.run STAGE`: run one stage in the workspace that is the current directory, under tracking.

This is what dvc.yaml calls, so both doors come through here. It imports no Prefect. SIGTERM lets the stage save its
resume point and ends with exit code 143; bad input ends with 2.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from tasks.processes import alone, die_with_parent

PATIENCE_S = 60.0
"""How long a stage that has ended waits for MLflow to take its figures; what did not arrive is sent later."""
STOPPED_PATIENCE_S = 3.0
"""The same for a stage that was told to stop: whoever asked expects it gone within ten seconds, save included."""
PROGRESS_S = 0.2
"""Time between two progress events that are passed on: a million pieces of work must not make as many lines."""

stop_requested = False


def _on_sigterm(*_: object) -> None:
    global stop_requested
    stop_requested = True  # a plain bool: anything that takes a lock can hang in a signal handler


if __name__ == "__main__":  # before the heavy imports, which take seconds in which the parent may already be gone
    signal.signal(signal.SIGTERM, _on_sigterm)
    die_with_parent()
    # Torch's threads spin while they wait; on a machine with other work that costs up to ten times the time.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from llm_core import artifacts
from llm_core.contract import BadInput, Event, Metric, Note, Progress, Resumed, Stop
from llm_core.pipeline import Stage, stage
from tasks import damage, gpus, record, tracking
from tasks.workspace import Workspace


class Sink:
    """Hears a stage's events: figures go to metrics.jsonl, everything to the events file that the runner shows."""

    def __init__(self, record_folder: Path) -> None:
        self.metrics = record_folder / "metrics.jsonl"
        path = os.environ.get("GROUNDUP_EVENTS")
        self.events = Path(path) if path else None
        self.fresh = True  # no figure told yet: what metrics.jsonl holds is an earlier attempt's
        self._shown = ("", 0.0)

    def tell(self, kind: str, **values: Any) -> None:
        """Append a line to the events file; without one (plain `dvc repro`), notes go to the terminal."""
        if self.events:
            with open(self.events, "a") as handle:
                handle.write(json.dumps({"event": kind, **values}) + "\n")
        elif kind in ("note", "failed"):
            print(values["text"], file=sys.stderr, flush=True)

    def __call__(self, event: Event) -> None:
        match event:
            case Metric(step, values):
                if self.fresh:
                    self._cut_back(-1)
                line = {"step": step, "time": time.time_ns() // 1_000_000, "values": dict(values)}
                with open(self.metrics, "a") as handle:
                    handle.write(json.dumps(line) + "\n")
            case Progress(done, total, unit, figures):
                if done == total or self._due(unit):
                    self.tell("progress", done=done, total=total, unit=unit, figures=dict(figures))
            case Note(text):
                self.tell("note", text=text)
            case Resumed(step):
                self._cut_back(step)
                self.tell("note", text=f"continues from step {step}")
        self.check()

    def _due(self, unit: str) -> bool:
        """Whether progress in this unit is passed on: the first of each is, and then what is not too soon after it."""
        last, told = self._shown
        now = time.monotonic()
        if unit == last and now - told < PROGRESS_S:
            return False
        self._shown = (unit, now)
        return True

    def check(self) -> None:
        """Raise `Stop` once the process was told to end."""
        if stop_requested:
            raise Stop

    def _cut_back(self, step: int) -> None:
        self.fresh = False
        lines = self.metrics.read_text().splitlines(keepends=True) if self.metrics.is_file() else []
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
        artifacts.write_atomic(self.metrics, "".join(kept).encode())


def run_stage(space: Workspace, row: Stage) -> None:
    """Run the stage's function and leave product, report and record. Raises what the stage raises."""
    waiting = Sink(Path(os.devnull))
    lock = space.root / ".groundup" / "locks" / f"{row.verb}.lock"
    with alone(lock, lambda text: waiting.tell("note", text=text), waiting.check):
        _run_alone(space, row)


def _run_alone(space: Workspace, row: Stage) -> None:
    config = space.config(row.verb)
    if os.environ.get(record.REFRESH) == row.verb:
        config = config.model_copy(update={"refresh": True})
    damage.check_inputs(space, row)
    inputs = space.inputs(row)
    fingerprint = space.fingerprint(row, inputs)
    space.drop_finished_scratch(row, keep=fingerprint)
    scratch = space.scratch(row, fingerprint)
    folder = scratch / "record"
    folder.mkdir(exist_ok=True)
    info = record.describe(space, row, config, inputs, fingerprint)
    artifacts.write_atomic(folder / "run.json", artifacts.dump_json(info))
    (folder / "status").unlink(missing_ok=True)
    sink = Sink(folder)
    sink.tell("started", stage=row.verb, pid=os.getpid())
    uri = tracking.tracking_uri(space.project)
    forwarder = tracking.Forwarder(folder, uri, lambda run_id: sink.tell("tracked", run_id=run_id)) if uri else None
    if forwarder:
        forwarder.start()
    status = "FAILED"
    try:
        arguments = {need: space.product(need) for need in row.needs}
        arguments |= {keyword: space.root / path for keyword, path in row.files.items()}
        began, spent = time.monotonic(), record.seconds_spent(folder)
        try:
            with gpus.hold(gpus.needed(config), lambda text: sink.tell("note", text=text), sink.check):
                report = row.load()(config, **arguments, out=space.product(row.makes), scratch=scratch, emit=sink)
        finally:
            seconds = spent + time.monotonic() - began
            artifacts.write_atomic(folder / "seconds", str(seconds).encode())
        if Workspace.at(space.root).fingerprint(row, space.inputs(row)) != fingerprint:
            # DVC hashes what a stage depends on when it ends, and would record the new state as what was used.
            raise BadInput(f"{row.verb}: its settings, code or inputs were changed while it ran; run it again")
        if forwarder:
            forwarder.opened.wait(30)
        record.write_report(space, row, report, info, folder, seconds)
        status = "FINISHED"
    except Stop:
        status = "KILLED"
        raise
    finally:
        (folder / "status").write_text(status)
        _close(forwarder, folder, space, sink, patience_s=STOPPED_PATIENCE_S if status == "KILLED" else PATIENCE_S)


def _close(
    forwarder: tracking.Forwarder | None, folder: Path, space: Workspace, sink: Sink, *, patience_s: float
) -> None:
    error = forwarder.close(patience_s) if forwarder else ConnectionError("no tracking server is running")
    if not error:
        tracking.forget_kept(folder, space.project)
    else:
        tracking.keep_for_later(folder, space.project)
        sink.tell("note", text=f"MLflow does not have this run yet ({error}); `groundup sync` sends it later")


def main(arguments: list[str]) -> int:
    """Run the stage named by the one argument; the exit code."""
    sink = Sink(Path(os.devnull))
    try:
        row = stage(arguments[0]) if len(arguments) == 1 else None
        if row is None:
            raise BadInput("usage: python -m tasks.run STAGE")
        run_stage(Workspace.at(Path.cwd()), row)
    except Stop:
        sink.tell("failed", text="stopped; its resume point is kept", code=143)
        return 143
    except BadInput as error:
        sink.tell("failed", text=str(error), code=2)
        return 2
    except Exception as error:
        traceback.print_exc()
        sink.tell("failed", text=f"{type(error).__name__}: {error}", code=1)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

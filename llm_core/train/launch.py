"""Several ranks for one stage: torchrun as a child, and what it starts (`-m llm_core.train.launch JOB.json`).

The parent is the stage's process, whose settings ask for more than one rank. It writes the job down, starts torchrun
and turns the lines that rank 0 writes back into events. Each rank runs the very same stage function; only the first one
speaks and writes. SIGTERM reaches every rank, by the parent or with the whole process group: they finish the step,
agree, save and end. On several machines torchrun is started there by hand or by Slurm, with the same JOB.json.
"""

# ruff: noqa: E402  # signal handlers come before the imports that take seconds

from __future__ import annotations

import ctypes
import signal
import sys

stop_requested = False


def _on_sigterm(*_: object) -> None:
    global stop_requested
    stop_requested = True  # a plain bool: anything that takes a lock can hang in a signal handler


def _die_with_parent() -> None:
    """Ask Linux for SIGTERM when the parent ends; elsewhere nothing happens."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _on_sigterm)
    _die_with_parent()

import importlib
import json
import os
import subprocess
import time
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llm_core.contract import BadInput, Event, Metric, Note, Progress, Resumed, Stop
from llm_core.train import distributed

POLL_S = 0.05
QUIET_S = 1.0
"""After so long without an event the last progress is told again: whoever listens may want to stop the run."""
GRACE_S = 60.0
"""How long ranks may take to save after SIGTERM before they are killed."""
KINDS: dict[str, type[Event]] = {kind.__name__: kind for kind in (Metric, Progress, Note, Resumed)}


def run_ranks(
    stage: str, config: Mapping[str, Any], paths: Mapping[str, Path], ranks: int, tell: Callable[[Event], None]
) -> dict[str, Any]:
    """Run the stage function of module `stage` in `ranks` processes on this machine; what its report holds.

    `paths` are the stage's keyword arguments, "scratch" among them. `tell` hears the events; if it raises `Stop` the
    ranks save, end, and `Stop` passes. Raises what a rank raised: `BadInput`, or `RuntimeError` with its sentence.
    """
    folder = paths["scratch"] / "ranks"
    folder.mkdir(parents=True, exist_ok=True)
    job = {"stage": stage, "config": dict(config), "paths": {name: str(path) for name, path in paths.items()}}
    (folder / "job.json").write_text(json.dumps(job))
    for name in ("events.jsonl", "report.json"):
        (folder / name).unlink(missing_ok=True)
    (folder / "events.jsonl").touch()
    tell(Note(f"{ranks} ranks start"))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    child = subprocess.Popen(
        [*command, "-m", "llm_core.train.launch", str(folder / "job.json")],
        stdin=subprocess.DEVNULL,
        preexec_fn=_die_with_parent,
        env=os.environ | {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")},
    )
    try:
        failed = _relay(folder / "events.jsonl", child, tell, ranks)
    finally:
        _end(child)
    if failed:
        raise _error(failed)
    if child.returncode:
        raise RuntimeError(
            f"a rank of {stage} ended with code {child.returncode} and no word, often for lack of memory"
        )
    report: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return report


def _relay(
    path: Path, child: subprocess.Popen[bytes], tell: Callable[[Event], None], ranks: int
) -> dict[str, Any] | None:
    """Pass on the ranks' events until they have ended; the first rank's failure, if any.

    Once all have said that they stopped, all is saved: torchrun, which would take its time, is killed.
    """
    failed: dict[str, Any] | None = None
    stopping, stopped = False, 0
    last: Event = Progress(0, None, "ranks")
    spoken = time.monotonic()
    for line in _lines(path, child):
        if line is not None and line["kind"] in ("failed", "stopped"):
            failed = failed or line
            stopped += line["kind"] == "stopped"
            if stopped == ranks:
                child.kill()
            continue
        if line is not None:
            event = KINDS[line.pop("kind")](**line)
            last = event if isinstance(event, Progress) else last
        elif time.monotonic() - spoken < QUIET_S:
            continue
        else:
            event = last
        spoken = time.monotonic()
        try:
            tell(event)
        except Stop:
            if not stopping and child.poll() is None:
                child.terminate()
            stopping = True
    return {"kind": "stopped"} if stopping else failed


def _lines(path: Path, child: subprocess.Popen[bytes]) -> Iterator[dict[str, Any] | None]:
    """Whole lines of the growing file until the child has ended and all are read; None when there is nothing new."""
    with open(path) as handle:
        partial = ""
        while True:
            ended = child.poll() is not None
            while text := handle.readline():
                partial += text
                if partial.endswith("\n"):
                    yield json.loads(partial)
                    partial = ""
            if ended:
                return
            yield None
            time.sleep(POLL_S)


def _end(child: subprocess.Popen[bytes]) -> None:
    """Let torchrun and its ranks end; kill it if it does not. Ranks die with it."""
    if child.poll() is None:
        child.terminate()
    try:
        child.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def _error(failed: Mapping[str, Any]) -> Exception:
    if failed["kind"] == "stopped":
        return Stop()
    return BadInput(failed["text"]) if failed["bad_input"] else RuntimeError(failed["text"])


class Voice:
    """Writes a rank's events as lines; each is one write, so those of several ranks do not mix."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, event: Event) -> None:
        """Write an event down."""
        self.say(type(event).__name__, **asdict(event))

    def say(self, kind: str, **values: Any) -> None:
        """Write a line of this kind."""
        with open(self.path, "a") as handle:
            handle.write(json.dumps({"kind": kind, **values}) + "\n")


def _silence(_: Event) -> None:
    """What the other ranks tell."""


def main(arguments: list[str]) -> int:
    """Run the job's stage as one rank; the exit code."""
    file = Path(arguments[0])
    job = json.loads(file.read_text())
    voice = Voice(file.with_name("events.jsonl"))
    distributed.listen(lambda: stop_requested)
    try:
        ranks = distributed.join()
        emit = voice if ranks.first else _silence
        run = importlib.import_module(job["stage"]).run
        config = typing.get_type_hints(run)["config"].model_validate(job["config"])
        report = run(config, **{name: Path(path) for name, path in job["paths"].items()}, emit=emit)
        if ranks.first:
            file.with_name("report.json").write_text(json.dumps(asdict(report)))
    except Stop:
        distributed.leave()
        voice.say("stopped")
        return 0
    except Exception as error:
        bad_input = isinstance(error, BadInput)
        voice.say("failed", text=str(error) if bad_input else f"{type(error).__name__}: {error}", bad_input=bad_input)
        raise
    finally:
        distributed.leave()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

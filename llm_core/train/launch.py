"""Several ranks for one stage: torchrun as a child, and what it starts (`-m llm_core.train.launch JOB.json`).

The parent is the stage's process, whose settings ask for more than one rank. It writes the job down, starts torchrun
(`agent.py`) and turns the lines that rank 0 writes back into events. Each rank runs the very same stage function; only
the first one speaks and writes. SIGTERM reaches every rank, by the parent or with the whole process group: they finish
the step, agree, save and end. On the other machines `join.py` finds the job in the workspace and starts torchrun there.
A lost rank takes the others with it; torchrun then begins all again from the last resume point, `restarts` times.
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


def die_with_parent() -> None:
    """Ask Linux for SIGTERM when the parent ends; elsewhere nothing happens."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _on_sigterm)
    die_with_parent()

import importlib
import json
import os
import secrets
import shutil
import subprocess
import threading
import time
import typing
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

import torch

from llm_core.artifacts import dump_json, write_atomic
from llm_core.contract import BadInput, Event, Metric, Note, Progress, Resumed, Stop
from llm_core.train import distributed
from llm_core.train.distributed import Start

RENDEZVOUS = "GROUNDUP_RENDEZVOUS"
"""Environment variable that says where several machines meet: HOST:PORT of the one that runs the stage."""
JOB = "job.json"
MEET_SECONDS = 600
"""How long machines and ranks wait for each other."""
POLL_S = 0.05
QUIET_S = 1.0
"""After so long without an event the last progress is told again: whoever listens may want to stop the run."""
GRACE_S = 60.0
"""How long ranks may take to save after SIGTERM before they are killed."""
KINDS: dict[str, type[Event]] = {kind.__name__: kind for kind in (Metric, Progress, Note, Resumed)}


def run_ranks(
    stage: str, config: Mapping[str, Any], paths: Mapping[str, Path], start: Start, tell: Callable[[Event], None]
) -> dict[str, Any]:
    """Run the stage function of module `stage` in the ranks of `start`; what its report holds.

    `paths` are the stage's keyword arguments, "scratch" among them. `tell` hears the events; if it raises `Stop` the
    ranks save, end, and `Stop` passes. Raises what a rank raised: `BadInput`, or `RuntimeError` with its sentence.
    """
    folder = paths["scratch"] / "ranks"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    job = {"stage": stage, "config": dict(config), "paths": {name: str(path) for name, path in paths.items()}}
    job |= {"start": asdict(start), "endpoint": endpoint(start.nodes), "id": secrets.token_hex(8)}
    (folder / "events.jsonl").touch()
    write_atomic(folder / JOB, dump_json(job))
    machines = f" on {start.nodes} machines that meet at {job['endpoint']}" if start.nodes > 1 else ""
    tell(Note(f"{start.world} ranks start{machines}"))
    child = subprocess.Popen(
        [sys.executable, "-m", "llm_core.train.agent", str(folder / JOB), "--host"],
        stdin=subprocess.DEVNULL,
        preexec_fn=die_with_parent,
        env=os.environ | {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")},
    )
    try:
        failed = _relay(folder / "events.jsonl", child, tell, start.world)
    finally:
        (folder / JOB).unlink(missing_ok=True)  # nobody joins any more
        end(child)
    if failed:
        raise _error(failed)
    if child.returncode:
        raise RuntimeError(
            f"a rank of {stage} ended with code {child.returncode} and no word, often for lack of memory"
        )
    report: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return report


def endpoint(nodes: int) -> str:
    """Where the torchruns of the machines meet: as the environment says, or a free port of a lone machine.

    Raises `BadInput` if several machines have no place to meet.
    """
    named = os.environ.get(RENDEZVOUS, "") if nodes > 1 else "localhost:0"
    host, _, port = named.rpartition(":")
    if not host or not port.isdigit():
        raise BadInput(f"nodes: {nodes} machines meet where {RENDEZVOUS} says: HOST:PORT of this one (it is {named!r})")
    return named


def _relay(
    path: Path, child: subprocess.Popen[bytes], tell: Callable[[Event], None], ranks: int
) -> dict[str, Any] | None:
    """Pass on the ranks' events until they have ended; why they failed, if they did.

    What a rank says while others were lost before it counts less than what any other says. Ranks that begin again have
    not failed. Bad input is not tried again. Once all have said that they stopped, all is saved: torchrun, which would
    take its time, is killed.
    """
    failed: dict[str, Any] | None = None
    stopping, stopped = False, 0
    last: Event = Progress(0, None, "ranks")
    event: Event
    spoken = time.monotonic()
    for line in _lines(path, child):
        if line is not None and line["kind"] in ("failed", "stopped"):
            failed = line if failed is None or (failed.get("lost") and not line.get("lost")) else failed
            stopped += line["kind"] == "stopped"
            if stopped == ranks:
                child.kill()
            elif (line.get("bad_input") or line.get("over")) and child.poll() is None:
                child.terminate()
            continue
        if line is not None and line["kind"] == "again":
            why = f" ({failed['text']})" if failed else ""
            event = Note(f"a rank was lost{why}; all begin again from the last resume point, {line['text']}")
            failed = None
        elif line is not None:
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
    if failed and failed["kind"] == "failed" and child.returncode == 0:
        failed = None  # it was an attempt before the last; the files of other machines are read a little later
    return {"kind": "stopped"} if stopping else failed


def _lines(path: Path, child: subprocess.Popen[bytes]) -> Iterator[dict[str, Any] | None]:
    """Whole lines of the growing file, and of those that other machines write beside it, until the child has ended and
    all are read; None when there is nothing new."""
    with ExitStack() as stack:
        handles: dict[Path, TextIO] = {}
        partial: dict[Path, str] = {}
        looked = -QUIET_S
        while True:
            ended = child.poll() is not None
            if ended or time.monotonic() - looked >= QUIET_S:  # not at every turn: it may be a folder on a network
                looked = time.monotonic()
                for each in (path, *sorted(path.parent.glob(f"{path.name}.*"))):
                    if each not in handles:
                        handles[each] = stack.enter_context(open(each))
            for each in handles:
                while text := handles[each].readline():
                    partial[each] = partial.get(each, "") + text
                    if text.endswith("\n"):
                        yield json.loads(partial.pop(each))
            if ended:
                return
            yield None
            time.sleep(POLL_S)


def end(child: subprocess.Popen[bytes], seconds: float = GRACE_S) -> None:
    """Let torchrun and its ranks end; kill it if it does not within so many seconds. Ranks die with it."""
    if child.poll() is None:
        child.terminate()
    try:
        child.wait(seconds)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def _error(failed: Mapping[str, Any]) -> Exception:
    if failed["kind"] == "stopped":
        return Stop()
    return BadInput(failed["text"]) if failed["bad_input"] else RuntimeError(failed["text"])


class Voice:
    """Writes a rank's events as lines; each is one write, so those of several ranks do not mix.

    Each machine writes a file of its own beside the first one's: over a network only one may append to a file.
    """

    def __init__(self, path: Path, node: str = "0") -> None:
        self.path = path if node == "0" else path.with_name(f"{path.name}.{node}")

    def __call__(self, event: Event) -> None:
        """Write an event down."""
        self.say(type(event).__name__, **asdict(event))

    def say(self, kind: str, **values: Any) -> None:
        """Write a line of this kind."""
        with open(self.path, "a") as handle:
            handle.write(json.dumps({"kind": kind, **values}) + "\n")

    def failed(self, text: str, *, bad_input: bool = False, lost: bool = False, over: bool = False) -> None:
        """Say why this rank ends; `lost`: only because another one is gone; `over`: nothing begins again."""
        self.say("failed", text=text, bad_input=bad_input, lost=lost, over=over)


def _silence(_: Event) -> None:
    """What the other ranks tell."""


@contextmanager
def _in_time(seconds: float, voice: Voice) -> Iterator[None]:
    """End this rank if it has not found the others in time: some may never have begun."""

    def give_up() -> None:
        rank, world = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
        voice.failed(f"rank {rank} has not found all {world} ranks within {seconds:g} s")
        os._exit(1)

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _attempts(path: Path) -> int:
    """How often the ranks have begun before, counted in this file: torchrun's own count differs among machines."""
    before = int(path.read_text()) if path.is_file() else 0
    write_atomic(path, str(before + 1).encode())
    return before


def _of_others(error: Exception) -> bool:
    """Whether it is only the end of another rank that ends this one."""
    text = str(error)
    return isinstance(error, torch.distributed.DistError) or "gloo" in text or "Connection closed by peer" in text


def main(arguments: list[str]) -> int:
    """Run the job's stage as one rank; the exit code."""
    file = Path(arguments[0])
    job = json.loads(file.read_text())
    voice = Voice(file.with_name("events.jsonl"), os.environ.get("GROUP_RANK", "0"))
    hang_seconds = job["start"]["hang_seconds"]
    distributed.listen(distributed.Listener(lambda: stop_requested, hang_seconds, voice.failed))
    try:
        with _in_time(hang_seconds or MEET_SECONDS, voice):
            ranks = distributed.join()
        if ranks.first and (attempt := _attempts(file.with_name("attempts"))):
            voice.say("again", text=f"{attempt} of {job['start']['restarts']} times")
        emit = voice if ranks.first else _silence
        run = importlib.import_module(job["stage"]).run
        config = typing.get_type_hints(run)["config"].model_validate(job["config"])
        report = run(config, **{name: Path(path) for name, path in job["paths"].items()}, emit=emit)
        if ranks.first:
            write_atomic(file.with_name("report.json"), dump_json(asdict(report)))
    except Stop:
        distributed.leave()
        voice.say("stopped")
        return 0
    except BadInput as error:
        voice.failed(str(error), bad_input=True)
        raise
    except Exception as error:
        text = str(error).partition(". This is typically caused by")[0]  # gloo's guesses
        voice.failed(f"{type(error).__name__}: {text}", lost=_of_others(error))
        raise
    finally:
        distributed.leave()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

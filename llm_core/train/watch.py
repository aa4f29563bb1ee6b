"""Which of several ranks stands still, and which is slow: ranks that train together wait for the last of them.

Notable:
- Every rank tells the store of the job, once a second and from a thread of its own, that it lives, how far it is and
  how long its own work took. Nothing of this travels with the training, and no clocks of two machines are compared.
- The first and the last rank look at all of them. One that gives no sign of life (stopped, its machine gone), or stays
  behind while nothing moves, is named, the whole run ends, and torchrun begins it again if it may.
- Own work is loading a batch and the forward pass without what is fetched from other ranks: there a slow rank is
  slow, while in the backward pass all wait for it. (The idea of finding stragglers by sections that hold no
  communication is that of NVIDIA's resiliency extension.)
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from llm_core.train.judge import Beat, Judge

BatchT = TypeVar("BatchT")
BEAT_S = 1.0
CLOSE_S = 5.0
SILENT = "it does not answer"
HUNG = 75
"""Exit code of ranks that end because one of them stands still."""


class Watch:
    """One rank's part in it: `marks` where the training is, beats, and in the first and the last rank looks."""

    def __init__(self, rank: int, world: int, seconds: float, fail: Callable[[str], None]) -> None:
        """`seconds` after which a rank that stands still ends the run; `fail` is told the sentence before it ends."""
        self.rank, self.world, self.seconds, self.fail = rank, world, seconds, fail
        self.beat = Beat(socket.gethostname(), os.getpid())
        self.every = min(BEAT_S, seconds / 5)
        self.judge = Judge(world, seconds)
        self.notes: list[str] = []
        """What the training thread should tell when it next speaks."""
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._main, self._ended = threading.get_ident(), threading.Event()
        self._thread: threading.Thread | None = None
        self._heard, self._trouble = 0, SILENT
        """Rounds in which the store answered, and why it did not in the last one."""

    def start(self) -> None:
        """Begin to beat. The environment must be torchrun's: its store is the one that is used."""
        where = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        patience = timedelta(seconds=max(5.0, self.seconds / 2))
        store = torch.distributed.TCPStore(*where, is_master=False, wait_for_workers=False, timeout=patience)
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        self.store = torch.distributed.PrefixStore(f"groundup-watch-{attempt}", store)
        self._main = threading.get_ident()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()
        threading.Thread(target=self._guard, name="guard", daemon=True).start()

    def close(self) -> None:
        """Stop beating: what this rank does from here on keeps nobody waiting."""
        self._ended.set()
        if self._thread is None:
            return
        self._thread.join(CLOSE_S)
        if not self._thread.is_alive():  # else it waits for a store that is gone, as this would
            self.beat.left = True
            with suppress(RuntimeError):
                self._post()

    def turn(self, step: int) -> None:
        """The rank comes to a new turn of the loop, where all agree on what to do."""
        self.beat.turn, self.beat.part, self.beat.step, self.beat.what = self.beat.turn + 1, 0, step, "waits for all"
        self._settle()

    @contextmanager
    def patient(self, what: str) -> Iterator[None]:
        """Work that may take the first rank long, such as an evaluation, while the others wait for it."""
        before, self.beat.patient, self.beat.what = self.beat.patient, True, what
        try:
            yield
        finally:
            self.beat.patient = before

    def loading(self, batch: Callable[[int], BatchT]) -> Callable[[int], BatchT]:
        """`batch`, timed and marked."""

        def load(number: int) -> BatchT:
            self.beat.part, self.beat.what = self.beat.part + 1, f"loads batch {number}"
            began = time.perf_counter()
            found = batch(number)
            took = time.perf_counter() - began
            self.beat.loading += took
            self.beat.own += took
            self.beat.part, self.beat.what = self.beat.part + 1, f"computes batch {number}"
            return found

        return load

    def clock(self, modules: Sequence[nn.Module], device: torch.device) -> Callable[[], None]:
        """Time the forward passes of these modules, in which nothing is fetched; call what is returned to end it."""
        began: list[Any] = []

        def before(*_: object) -> None:
            began.append(_event() if device.type == "cuda" else time.perf_counter())

        def after(*_: object) -> None:
            if device.type == "cuda":
                self._events.append((began.pop(), _event()))
            else:
                self.beat.own += time.perf_counter() - began.pop()

        def end() -> None:
            for hook in hooks:
                hook.remove()

        hooks = [module.register_forward_pre_hook(before) for module in modules]
        hooks += [module.register_forward_hook(after) for module in modules]
        return end

    def slowest(self) -> tuple[int, float] | None:
        """The slowest rank and how many times the others' median it needs, if that is known on this rank."""
        return self.judge.slowest

    def _settle(self) -> None:
        """A GPU's times are asked for when they are there; nothing waits for them."""
        while self._events and self._events[0][1].query():  # type: ignore[no-untyped-call]
            start, end = self._events.pop(0)
            self.beat.own += start.elapsed_time(end) / 1000

    def _run(self) -> None:
        while not self._ended.is_set():
            try:
                self._post()
                self._heed()
                if self.rank in (0, self.world - 1):
                    self._look()
                self._heard, self._trouble = self._heard + 1, SILENT
            except RuntimeError as error:  # torch's errors of a store that is gone
                self._trouble = str(error).splitlines()[0] if str(error) else type(error).__name__
            self._ended.wait(self.every)

    def _guard(self) -> None:
        """A question to a store whose process is stopped is never answered, and no timeout of torch's ends it.

        Rounds are counted, not the clock's seconds: in those this process may have been stopped itself.
        """
        heard, waited = -1, 0.0
        while not self._ended.wait(self.every):
            waited = waited + self.every if heard == self._heard else 0.0
            heard = self._heard
            if waited > self.seconds:
                self._alone()

    def _post(self) -> None:
        self.beat.tick += 1
        if not self._ended.is_set():
            self.beat.place = self._place()
        self.store.set(f"beat-{self.rank}", self.beat.text())

    def _place(self) -> str:
        """Where the training thread is, for people: the innermost line of this project."""
        frame = sys._current_frames().get(self._main)
        while frame is not None:
            file = Path(frame.f_code.co_filename)
            if "llm_core" in file.parts and file.name != "gradients.py":
                return f"{file.name}:{frame.f_lineno} ({frame.f_code.co_name})"
            frame = frame.f_back
        return ""

    def _look(self) -> None:
        beats = []
        for rank in range(self.world):
            there = self.store.check([f"beat-{rank}"])
            beats.append(Beat.read(self.store.get(f"beat-{rank}")) if there else None)
        sentence, culprits = self.judge.look(beats, time.monotonic())
        self.notes += self.judge.news()
        if sentence and not self._ended.is_set():
            who = [(beat.host, beat.pid) for rank in culprits if (beat := beats[rank]) is not None]
            self.store.set("verdict", json.dumps({"sentence": sentence, "who": who}))
            self.fail(sentence)
            self._heed()

    def _heed(self) -> None:
        """End, and end those of this machine that cannot end by themselves, once somebody was found to stand still."""
        if not self.store.check(["verdict"]):
            return
        for host, pid in json.loads(self.store.get("verdict"))["who"]:
            if host == self.beat.host and pid != self.beat.pid:
                with suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)  # a stopped process hears nothing else
        os._exit(HUNG)

    def _alone(self) -> None:
        """End because the store is silent: it is torchrun's, or with several machines that of the first rank."""
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        whose = "torchrun" if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" else "rank 0"
        self.fail(
            f"for {self.seconds:g} s no sign of life from {whose} at {where}, whose store rank {self.rank} on "
            f"{self.beat.host} cannot reach ({self._trouble})"
        )
        os._exit(HUNG)


def _event() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event

"""The one thread that touches models. The event loop hands it work and gets tokens back; it never waits for it.

Each model has an engine of its own (a `Bench`). New work goes to the newest; an older one is stepped until its last
answer has ended, so that a swap drops nothing. Everything the thread is told goes through one queue, everything it
tells goes through `call_soon_threadsafe`, once a step for all rows.
"""

from __future__ import annotations

import asyncio
import logging
import math
import queue
import threading
import time
from collections.abc import Callable, Iterable, Sequence

import torch

from apps.serving.errors import ApiError, failed
from apps.serving.metrics import Metrics
from apps.serving.served import Served
from llm_core.contract import BadInput
from llm_core.model.engine import Drawn, Engine, Request
from llm_core.model.transformer import Transformer

log = logging.getLogger("groundup.serve")

MakeEngine = Callable[[Transformer, int], Engine]
Item = tuple[int, Drawn | Exception]
SMOOTHING = 0.1
"""Weight of the newest answer in the mean seconds that an answer takes."""
LONGEST_RETRY = 30


def shutting_down() -> ApiError:
    """What those are told who still wait when the thread ends."""
    return ApiError(503, "the server is shutting down", kind="server_error", code="shutting_down", retry_after=1)


class Job:
    """What one HTTP request wants drawn: its rows, and the inbox in which their tokens arrive."""

    def __init__(self, served: Served, requests: Sequence[Request]) -> None:
        self.served, self.requests = served, requests
        self.open = set(range(len(requests)))
        self.began = time.monotonic()
        self._inbox: list[Item] = []
        self._arrived = asyncio.Event()

    def put(self, items: Sequence[Item]) -> None:
        """Deliver tokens; called in the event loop."""
        self._inbox += items
        self._arrived.set()

    async def drawn(self) -> list[tuple[int, Drawn]]:
        """Wait for tokens: (row, token), all there are. Raises what befell a row."""
        await self._arrived.wait()
        self._arrived.clear()
        items, self._inbox = self._inbox, []
        found = []
        for row, item in items:
            if isinstance(item, Exception):
                raise item
            found.append((row, item))
        return found


class Bench:
    """An engine and whose rows are in it."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.rows: dict[int, tuple[Job, int]] = {}
        self.handles: dict[tuple[Job, int], int] = {}

    def add(self, job: Job) -> None:
        """Queue all rows of a job. Raises `BadInput` if the engine refuses one; then none stays."""
        try:
            for row, request in enumerate(job.requests):
                handle = self.engine.add(request)
                self.rows[handle], self.handles[job, row] = (job, row), handle
        except BadInput:
            for row in range(len(job.requests)):
                self.remove(job, row)
            raise

    def remove(self, job: Job, row: int) -> None:
        """Take a row out, if it is still here."""
        handle = self.handles.pop((job, row), None)
        if handle is not None:
            del self.rows[handle]
            self.engine.remove(handle)

    def jobs(self) -> set[Job]:
        """All whose rows are here."""
        return {job for job, _ in self.rows.values()}

    def step(self) -> dict[Job, list[Item]]:
        """One token for every row; what each job gets."""
        found: dict[Job, list[Item]] = {}
        for drawn in self.engine.step():
            job, row = self.rows[drawn.handle]
            found.setdefault(job, []).append((row, drawn))
            if drawn.finished:
                del self.rows[drawn.handle], self.handles[job, row]
        return found


class ModelThread:
    """Start it in a running event loop; its methods are called from there."""

    def __init__(self, served: Served, max_rows: int, max_queue: int, metrics: Metrics, make: MakeEngine) -> None:
        self.served = served
        self._max_rows, self._capacity, self._metrics, self._make = max_rows, max_rows + max_queue, metrics, make
        self._taken = 0
        self._mean_seconds = 1.0
        self._orders: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._benches = {served.digest: Bench(make(served.model, max_rows))}
        self._newest = served.digest
        self._ended = False
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        metrics.serving(served.digest, served.version)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread still works."""
        return self._thread.is_alive()

    @property
    def max_rows(self) -> int:
        """Most rows of one job, and of the batch."""
        return self._max_rows

    def submit(self, job: Job) -> None:
        """Take a job in. Raises `ApiError` 429 if its rows find no room."""
        if not self.alive:
            raise shutting_down()
        if self._taken + len(job.requests) > self._capacity:
            raise self.busy("the server is busy and its queue is full; try again later")
        self._taken += len(job.requests)
        self._metrics.prompt_tokens.inc(sum(len(prompt) for prompt in {tuple(r.prompt) for r in job.requests}))
        self._orders.put(lambda: self._add(job))

    def close(self, job: Job, row: int) -> None:
        """The row has ended, or nobody wants it any more: free its place."""
        if row in job.open:
            job.open.discard(row)
            self._taken -= 1
            self._mean_seconds += SMOOTHING * (time.monotonic() - job.began - self._mean_seconds)
            self._orders.put(lambda: self._remove(job, row))

    def busy(self, text: str) -> ApiError:
        """A refusal for want of room. Its Retry-After is the time in which half of a full queue is worked off."""
        self._metrics.refused.inc()
        seconds = math.ceil(self._mean_seconds * self._capacity / self._max_rows / 2)
        after = min(LONGEST_RETRY, max(1, seconds))
        return ApiError(429, text, kind="rate_limit_error", code="queue_full", retry_after=after)

    async def swap(self, served: Served) -> None:
        """Let new jobs go to another model; those that run, or wait already, stay with theirs."""
        engine = await asyncio.to_thread(self._make, served.model, self._max_rows)
        opened = asyncio.Event()

        def order() -> None:
            self._benches.setdefault(served.digest, Bench(engine))
            self._newest = served.digest
            self._loop.call_soon_threadsafe(opened.set)

        self._orders.put(order)
        await opened.wait()
        self.served = served
        self._metrics.swaps.inc()
        self._metrics.serving(served.digest, served.version)

    async def stop(self) -> None:
        """End the thread; whoever still waits is told so."""
        self._orders.put(self._end)
        await asyncio.to_thread(self._thread.join)

    # What follows runs in the thread.

    @torch.inference_mode()
    def _run(self) -> None:
        try:
            while not self._ended:
                if not any(bench.rows for bench in self._benches.values()):
                    self._count()
                    self._orders.get()()
                while not self._orders.empty():
                    self._orders.get()()
                for digest, bench in list(self._benches.items()):
                    if bench.rows:
                        self._step(digest, bench)
                    elif digest != self._newest:
                        del self._benches[digest]
        finally:
            over = shutting_down()
            self._tell({job: [(0, over)] for bench in self._benches.values() for job in bench.jobs()})

    def _add(self, job: Job) -> None:
        try:
            bench = self._benches.get(job.served.digest)
            if bench is None:  # given up after a failure, or swapped out since the job was made
                bench = Bench(self._make(job.served.model, self._max_rows))
                self._benches[job.served.digest] = bench
            if job.open:
                bench.add(job)
        except BadInput as error:
            self._tell({job: [(0, error)]})
        except Exception:
            self._give_up([job])

    def _remove(self, job: Job, row: int) -> None:
        bench = self._benches.get(job.served.digest)
        if bench:
            self._try(job.served.digest, bench, lambda: bench.remove(job, row))

    def _step(self, digest: str, bench: Bench) -> None:
        found: dict[Job, list[Item]] = {}
        self._try(digest, bench, lambda: found.update(bench.step()))
        self._metrics.drawn_tokens.inc(sum(map(len, found.values())))
        self._count()
        self._tell(found)

    def _try(self, digest: str, bench: Bench, work: Callable[[], None]) -> None:
        """Do something with an engine; if it fails, its answers are given up and the next job gets a new engine."""
        try:
            work()
        except Exception:
            del self._benches[digest]
            self._give_up(bench.jobs())

    def _give_up(self, jobs: Iterable[Job]) -> None:
        log.exception("the model failed; its answers are given up")
        self._metrics.failures.labels("step").inc()
        self._tell({job: [(0, failed())] for job in jobs})

    def _tell(self, found: dict[Job, list[Item]]) -> None:
        def deliver() -> None:
            for job, items in found.items():
                job.put(items)

        if found:
            self._loop.call_soon_threadsafe(deliver)

    def _count(self) -> None:
        engines = [bench.engine for bench in self._benches.values()]
        self._metrics.running.set(sum(engine.active for engine in engines))
        self._metrics.waiting.set(sum(engine.waiting for engine in engines))

    def _end(self) -> None:
        self._ended = True

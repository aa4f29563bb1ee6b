"""Map a function over batches, in order, on any `concurrent.futures.Executor`.

Results come back in the order of the inputs, whatever finishes first, so the number of workers never changes a
product. At most twice as many batches as workers are under way: memory stays flat however long the input is.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from itertools import islice
from multiprocessing import get_context
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def available_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def batched(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Lists of `size` items; the last may be shorter."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def map_ordered(
    function: Callable[[Item], Result], items: Iterable[Item], *, workers: int = 0, executor: Executor | None = None
) -> Iterator[Result]:
    """Apply `function` (importable by name) to each item. `workers` = 0 takes all cores, 1 runs in this process."""
    workers = workers or available_cores()
    if executor is None and workers == 1:
        yield from map(function, items)
    elif executor is None:
        with ProcessPoolExecutor(workers, mp_context=get_context("forkserver")) as pool:
            yield from _windowed(function, items, pool, 2 * workers)
    else:
        yield from _windowed(function, items, executor, 2 * workers)


def _windowed(
    function: Callable[[Item], Result], items: Iterable[Item], pool: Executor, window: int
) -> Iterator[Result]:
    pending: deque[Future[Result]] = deque()
    for item in items:
        pending.append(pool.submit(function, item))
        if len(pending) >= window:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()

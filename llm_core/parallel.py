"""Map a function over batches, in order, on any `concurrent.futures.Executor`.

Results come back in the order of the inputs, whatever finishes first, so the number of workers never changes a
product. At most twice as many batches as workers are under way: memory stays flat however long the input is.

`isolated` applies a function in a child process, for work that may hang or crash inside a C library: a parser does not
return to Python while it runs, so no signal handler and no thread can end it, but the kernel can end the process.
"""

from __future__ import annotations

import io
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from contextlib import suppress
from itertools import islice
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
IDLE_DEATHS = 3
"""A child that ends so often in a row before it began to work cannot be started at all."""
TIMEOUTS = frozenset({signal.SIGPROF, signal.SIGALRM})
WALL_CLOCK = 6
"""Seconds on the clock for each of processor time, for what waits instead of working."""
_local = threading.local()


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
        with processes(workers) as pool:
            yield from _windowed(function, items, pool, 2 * workers)
    else:
        yield from _windowed(function, items, executor, 2 * workers)


def processes(workers: int) -> Executor:
    """So many processes of this machine, started as there is work for them; they end with this one, however it ends."""
    return ProcessPoolExecutor(workers, mp_context=get_context("forkserver"), initializer=_end_with_parent)


def _end_with_parent() -> None:
    """A worker that waits for work holds both ends of the pipe it comes through: it would wait for ever."""
    parent = parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _windowed(
    function: Callable[[Item], Result], items: Iterable[Item], pool: Executor, window: int
) -> Iterator[Result]:
    pending: deque[Future[Result]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) >= window:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()


def isolated(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    seconds: float,
    failed: Callable[[Item, str], Result],
) -> list[Result]:
    """Apply `function` (importable by name) to each item in a child process of this thread; results in order.

    An item that takes more than `seconds` of processor time (of which a busy machine takes nothing away) or six times
    as long by the clock, or that ends the child (a crash in a C library, the system out of memory), costs that item
    alone: its result is `failed(item, "timeout")` or `failed(item, "crashed")`, and a new child goes on with the next.
    What `function` raises is raised here. The child is kept for the thread's next call, ends with the thread, and needs
    nothing of the executor: threads, processes and other machines will all do.
    """
    children: dict[Any, _Child] = _local.__dict__.setdefault("children", {})
    key = (os.getpid(), function, seconds)
    results: list[Result] = []
    deaths = 0
    while len(results) < len(items):
        if key not in children:
            children[key] = _Child(function, seconds)
        rest = items[len(results) :]
        try:
            began, answers, end = children[key].work(rest)
        except BaseException:
            del children[key]  # interrupted in the middle of an exchange
            raise
        for result, error in answers:
            if error is not None:
                raise error
            results.append(result)
        if end is not None:
            del children[key]
            deaths = 0 if began else deaths + 1
            if began:
                results.append(failed(rest[len(answers)], end))
            elif deaths >= IDLE_DEATHS:
                raise RuntimeError(f"a worker process for {function!r} {end} before it began")
    return results


class _Child:
    """A process that applies one function. Answers go into a file that both hold: what was done outlives the child."""

    def __init__(self, function: Callable[[Any], Any], seconds: float) -> None:
        self._pipe, theirs = Pipe()
        self._answers = os.memfd_create("answers") if hasattr(os, "memfd_create") else _temporary()
        numbers = (theirs.fileno(), self._answers)
        code = "import sys; from llm_core.parallel import serve; serve(int(sys.argv[1]), int(sys.argv[2]))"
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        command = [sys.executable, "-c", code, *map(str, numbers)]
        self._process = subprocess.Popen(command, pass_fds=numbers, env=environment, stdin=subprocess.DEVNULL)
        theirs.close()
        self._end = weakref.finalize(self, _end, self._process, self._pipe, self._answers)
        with suppress(OSError):  # its death is noticed when it is given work
            self._pipe.send((function, seconds))

    def work(self, items: Sequence[Any]) -> tuple[bool, list[Any], str | None]:
        """(whether it began, answers, None or how it ended). An answer is (result, None) or (None, error)."""
        began = False
        try:
            self._pipe.send(items)
            began = bool(self._pipe.recv())
            self._pipe.recv()
        except (EOFError, OSError):
            end = "timeout" if -self._process.wait() in TIMEOUTS else "crashed"
            answers = self._read()[: len(items)] if began else []
            self._end()
            return began and len(answers) < len(items), answers, end
        return began, self._read(), None

    def _read(self) -> list[Any]:
        file = io.BytesIO(os.pread(self._answers, os.fstat(self._answers).st_size, 0))
        answers = []
        while size := int.from_bytes(file.read(8), "little"):
            data = file.read(size)
            if len(data) < size:
                break  # it ended while it wrote
            answers.append(pickle.loads(data))
        return answers


def _temporary() -> int:
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _end(process: subprocess.Popen[bytes], pipe: Connection, answers: int) -> None:
    """Close the pipe, which ends an idle child; a busy one is killed."""
    pipe.close()
    os.close(answers)
    try:
        process.wait(1)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def serve(pipe_number: int, answers_number: int) -> None:
    """What the child of `isolated` does: items in, answers out, until the pipe is closed.

    The timers' signals have the system's own handling, which ends the process whatever it is doing. Requests to end are
    left to the parent: it closes the pipe.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    for number in TIMEOUTS:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, TIMEOUTS)
    with suppress(OSError):  # Linux: should memory run out, this process goes first
        Path("/proc/self/oom_score_adj").write_text("500")
    pipe = Connection(pipe_number)
    with suppress(EOFError, ConnectionError), open(answers_number, "wb", buffering=0) as answers:
        function, seconds = pipe.recv()
        while True:
            items = pipe.recv()
            answers.seek(0)
            answers.truncate()
            pipe.send(True)
            for item in items:
                _set_timers(seconds)
                data = _answer(function, item)
                _set_timers(0)
                answers.write(len(data).to_bytes(8, "little") + data)
            pipe.send(True)


def _set_timers(seconds: float) -> None:
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, WALL_CLOCK * seconds)


def _answer(function: Callable[[Any], Any], item: Any) -> bytes:
    try:
        return pickle.dumps((function(item), None), protocol=5)
    except Exception as error:
        try:
            data = pickle.dumps((None, error))
            pickle.loads(data)
        except Exception:
            return pickle.dumps((None, RuntimeError(f"{type(error).__name__}: {error}")))
        return data

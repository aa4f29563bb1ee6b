"""Workers of a stage: processes of this machine, or those of a Dask cluster (Rocklin 2015).

A cluster's workers take several items at a time, so many that a batch lasts some seconds, and hand the results back in
the order of the items: neither the number of workers nor their order changes a product. A function that is mapped must
be repeatable: Dask runs a batch again if its worker is killed, and here a batch that is late is given to another worker
as well; whichever ends first counts.
"""

from __future__ import annotations

import hashlib
import platform
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Executor, Future, wait
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache, partial
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from llm_core.contract import BadInput, Row
from llm_core.parallel import available_cores, map_ordered, processes

Item = TypeVar("Item")
Result = TypeVar("Result")
BATCH_SECONDS = 3.0
"""Work in a batch, at most, about: the scheduler costs a few milliseconds a batch."""
_SHORT_SECONDS, _SHARE = 0.3, 16
"""Before long a batch has this share of the time that has gone by: at the end a worker waits for no more than that."""
LATE_SECONDS = 60.0
"""A batch that is waited for so long, or eight times as long as batches take, is given to another worker as well."""
CONNECT_SECONDS = 20.0
WORKER_SECONDS = 120.0
"""How long the first worker is waited for: a cluster may be starting machines."""
MOST_ITEMS = 512
_LOOK_SECONDS = 0.5
_PACKAGES = (
    "fastwarc",
    "ftfy",
    "lxml",
    "numpy",
    "py3langid",
    "pyarrow",
    "rensa",
    "resiliparse",
    "tiktoken",
    "tokenizers",
    "trafilatura",
    "xxhash",
)


@dataclass
class Share:
    """What one worker did: batches, units (rows, bytes) and the seconds they took."""

    batches: int = 0
    units: float = 0
    seconds: float = 0.0

    @property
    def rate(self) -> float:
        """Units a second."""
        return self.units / max(self.seconds, 1e-9)


class Crew:
    """Processes of this machine (one: this one), started once for all that a stage lets them do."""

    def __init__(self, workers: int = 0) -> None:
        self._workers = workers or available_cores()
        self._pool: Executor | None = None
        self.shares: dict[str, Share] = {}
        """By worker; processes of this machine are not told apart."""

    def map(
        self, function: Callable[[Item], Result], items: Iterable[Item], units: Callable[[Result], float]
    ) -> Iterator[Result]:
        """`function` (importable by name) of each item, in order; `units` says how much a result is, for the rates."""
        del units
        if self._pool is None and self._workers > 1:
            self._pool = processes(self._workers)
        yield from map_ordered(function, items, workers=self._workers, executor=self._pool)

    def close(self) -> None:
        """End the processes."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def figures(self) -> Mapping[str, str]:
        """How fast the workers are, for the bar; nothing for processes of this machine."""
        rates = sorted(share.rate for share in self.shares.values())
        if not rates:
            return {}
        return {"workers": f"{len(rates)}, each {rates[0]:,.0f} to {rates[-1]:,.0f}/s"}

    def table(self, unit: str) -> list[Row]:
        """What each worker did, for the report."""
        rows: list[Row] = []
        for name, share in sorted(self.shares.items()):
            row: dict[str, str | float | int] = {"worker": name, "batches": share.batches, unit: share.units}
            rows.append(row | {"seconds": round(share.seconds, 3), f"{unit}_per_s": round(share.rate, 1)})
        return rows


@contextmanager
def crew(kind: str = "processes", address: str | None = None, workers: int = 0) -> Iterator[Crew]:
    """The workers of a stage: `workers` processes of this machine (0: all cores), or a Dask cluster at `address`.

    Raises `BadInput` if no scheduler or no worker answers there.
    """
    if kind == "processes":
        with closing(Crew(workers)) as found:
            yield found
        return
    client = _connect(str(address))
    try:
        yield DaskCrew(client, str(address))
    finally:
        with suppress(Exception):  # a scheduler that is gone cannot be told good-bye
            client.close(timeout=2)


def _connect(address: str) -> Any:
    try:
        from distributed import Client
    except ModuleNotFoundError:
        raise BadInput("cluster.kind: dask needs the extra [scale]: pip install -e '.[scale]'") from None
    try:
        client = Client(address, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError, TimeoutError) as error:
        raise BadInput(f"cluster.address: no Dask scheduler answers at {address} ({_line(error)})") from error
    try:
        client.wait_for_workers(1, timeout=WORKER_SECONDS)
    except Exception as error:
        client.close(timeout=2)
        raise BadInput(f"cluster.address: the Dask scheduler at {address} has no worker ({_line(error)})") from error
    return client


@dataclass
class _Batch:
    """Items that are under way: `futures` grows by one if the batch is given to a second worker."""

    items: Sequence[Any]
    key: str
    futures: list[Future[Any]] = field(default_factory=list)


class DaskCrew(Crew):
    """Workers of a Dask cluster, through its `concurrent.futures` executor."""

    def __init__(
        self, client: Any, address: str, *, seconds: float = BATCH_SECONDS, late: float = LATE_SECONDS
    ) -> None:
        super().__init__()
        self._client, self._address = client, address
        self._seconds, self._late = seconds, late
        self._executor = client.get_executor(pure=False)
        self._number = 0
        self.repeated = 0
        """Batches that were given to a second worker because the first was late."""

    def map(
        self, function: Callable[[Item], Result], items: Iterable[Item], units: Callable[[Result], float]
    ) -> Iterator[Result]:
        """As with processes. Raises `BadInput` if the scheduler is lost, or a worker runs other code than this one."""
        source, size, began = iter(items), 1, time.monotonic()
        pending: deque[_Batch] = deque()
        job = partial(_work, function, code_digest())
        try:
            while True:
                room = 2 * max(1, self._threads()) - len(pending)
                while room > 0 and (chunk := list(islice(source, size))):
                    pending.append(self._submit(job, chunk))
                    room -= 1
                if not pending:
                    return
                results, seconds, worker = self._result(job, pending[0])
                pending.popleft()
                share = self.shares.setdefault(worker, Share())
                if units_done := sum(map(units, results)):  # work that is not counted does not tell how fast one is
                    share.batches += 1
                    share.units += units_done
                    share.seconds += seconds
                wanted = min(self._seconds, max(_SHORT_SECONDS, (time.monotonic() - began) / _SHARE))
                size = self._next_size(size, seconds / max(1, len(results)), wanted)
                yield from results
        finally:
            for batch in pending:
                for future in batch.futures:
                    future.cancel()

    def _threads(self) -> int:
        with self._told():
            return sum(self._client.nthreads().values())

    def _next_size(self, size: int, each: float, wanted: float) -> int:
        """Items for the next batch: towards the wanted seconds, at most four times as many as before."""
        return max(1, min(MOST_ITEMS, 4 * size, round(wanted / max(each, 1e-6))))

    def _submit(self, job: Callable[[Sequence[Any]], Any], items: Sequence[Any]) -> _Batch:
        self._number += 1
        batch = _Batch(items, f"groundup-{id(self)}-{self._number}")
        with self._told():
            batch.futures.append(self._executor.submit(job, items, key=batch.key))
        return batch

    def _result(self, job: Callable[[Sequence[Any]], Any], batch: _Batch) -> tuple[list[Any], float, str]:
        began = time.monotonic()
        while True:
            done, _ = wait(batch.futures, timeout=_LOOK_SECONDS, return_when=FIRST_COMPLETED)
            if done:
                with self._told():
                    found: tuple[list[Any], float, str] = next(iter(done)).result()
                for future in batch.futures:
                    future.cancel()
                return found
            usual = sum(s.seconds for s in self.shares.values()) / max(1, sum(s.batches for s in self.shares.values()))
            if len(batch.futures) == 1 and time.monotonic() - began > max(self._late, 8 * usual):
                self._repeat(job, batch)
                began = time.monotonic()

    def _repeat(self, job: Callable[[Sequence[Any]], Any], batch: _Batch) -> None:
        """Give a late batch to the workers that do not have it, if there are any."""
        with self._told():
            there = set(self._client.nthreads())
            having = {worker for worker, keys in self._client.processing().items() if batch.key in keys}
            if not there:
                raise BadInput(f"cluster.address: no worker is left at {self._address}; run again once there are some")
            if having and there - having:
                again = self._client.get_executor(pure=False, workers=sorted(there - having))
                batch.futures.append(again.submit(job, batch.items, key=f"{batch.key}-again"))
                self.repeated += 1

    @contextmanager
    def _told(self) -> Iterator[None]:
        """What can happen to a cluster, in one sentence each."""
        from distributed import KilledWorker

        try:
            yield
        except KilledWorker as error:
            raise BadInput(
                "cluster.address: a batch ended every worker that took it, as it does where memory is short: "
                f"give the workers more memory ({_line(error)})"
            ) from error
        except (CancelledError, OSError, TimeoutError) as error:
            if self._client.status == "running" and not isinstance(error, CancelledError):
                raise
            raise BadInput(
                f"cluster.address: the Dask scheduler at {self._address} was lost; run again once it is there: what was"
                " done is kept"
            ) from error


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:200] + "..."


def _work(function: Callable[[Any], Any], digest: str, items: Sequence[Any]) -> tuple[list[Any], float, str]:
    """What a worker does: (results, seconds, its name). Raises `BadInput` if its code is not the caller's."""
    from distributed import get_worker

    worker = str(get_worker().address)
    if code_digest() != digest:
        raise BadInput(
            f"cluster.address: the worker {worker} runs other code, Python or packages than this machine; start it "
            "from the same environment and version"
        )
    began = time.perf_counter()
    results = [function(item) for item in items]
    return results, time.perf_counter() - began, worker


@lru_cache(1)
def code_digest() -> str:
    """Names this code, Python and the packages that texts pass through: workers with another one give other bytes."""
    found = hashlib.sha256(platform.python_version().encode())
    for package in _PACKAGES:
        try:
            found.update(f"{package} {version(package)}\n".encode())
        except PackageNotFoundError:
            found.update(f"{package} absent\n".encode())
    root = Path(__file__).parent
    for name in ("contract.py", "cluster.py", "parallel.py"):
        found.update((root / name).read_bytes())
    for path in sorted([*(root / "data").rglob("*.py"), *(root / "storage").rglob("*.py")]):
        found.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return found.hexdigest()

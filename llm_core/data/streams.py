"""Streams of ids put together from pieces: workers lay down what they encoded, and copy it into the files of shards.

A stream is a list of runs, bytes of files that were laid down; it is divided into files of equal length, so that each
can be written by another worker. Who puts it together handles the list alone, never the ids.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llm_core.artifacts import Entry
from llm_core.storage.places import Place
from llm_core.storage.products import Output

Array = npt.NDArray[Any]
FILE_BYTES = 1 << 30
"""Bytes of a file of a stream; the last is shorter. A multiple of the size of an id."""
WINDOW_BYTES = 32_000_000
Run = tuple[str, int, int]
"""(file that was laid down, offset, bytes)."""


def lay(place: Place, arrays: Sequence[Array]) -> tuple[str, list[int]]:
    """Lay arrays down one after the other in a file of their own: (its name, where each begins)."""
    name = f"{uuid.uuid4().hex}.ids"
    pieces = [np.ascontiguousarray(array).tobytes() for array in arrays]
    place.write(name, b"".join(pieces))
    return name, np.cumsum([0, *map(len, pieces)])[:-1].tolist()


def chosen_runs(file: str, offset: int, lengths: Array, chosen: Array, item: int) -> Iterator[Run]:
    """Runs of the chosen sequences [n] among those of `lengths` [n] that stand in a file from `offset` on."""
    ends = np.cumsum(lengths, dtype=np.int64) * item
    starts = ends - lengths.astype(np.int64) * item
    edges = np.flatnonzero(np.diff(np.concatenate([[0], chosen.astype(np.int8), [0]])))
    for first, stop in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
        yield file, offset + int(starts[first]), int(ends[stop - 1] - starts[first])


def file_name(stream: str, suffix: str, number: int) -> str:
    """The file of a stream's part: train.bin, train-00001.bin and so on."""
    return f"{stream}.{suffix}" if number == 0 else f"{stream}-{number:05d}.{suffix}"


@dataclass(frozen=True, slots=True)
class Joining:
    """One file of a stream, and the runs that it is made of."""

    name: str
    runs: tuple[Run, ...]
    place: Place
    output: Output


def divided(stream: str, suffix: str, runs: Iterable[Run], place: Place, output: Output) -> Iterator[Joining]:
    """The files of a stream; one at least."""
    number, size = 0, 0
    mine: list[Run] = []
    for name, offset, left in runs:
        while left:
            if size == FILE_BYTES:
                yield Joining(file_name(stream, suffix, number), tuple(mine), place, output)
                number, size, mine = number + 1, 0, []
            part = min(left, FILE_BYTES - size)
            mine.append((name, offset, part))
            size, offset, left = size + part, offset + part, left - part
    yield Joining(file_name(stream, suffix, number), tuple(mine), place, output)


def join(job: Joining) -> tuple[str, Entry]:
    """Write a file of a stream into its product: (its name, its entry in the manifest)."""

    def fill(path: Path) -> None:
        with open(path, "wb") as file:
            for window in _windows(job.runs):
                for data in job.place.ranges(window):
                    file.write(data)

    return job.output.put(job.name, fill)


def _windows(runs: Sequence[Run]) -> Iterator[list[Run]]:
    window: list[Run] = []
    size = 0
    for name, offset, left in runs:
        while left:
            part = min(left, WINDOW_BYTES - size)
            window.append((name, offset, part))
            size, offset, left = size + part, offset + part, left - part
            if size >= WINDOW_BYTES:
                yield window
                window, size = [], 0
    if window:
        yield window


class Joined:
    """Arrays [n], [m] ... read as if they were one; a slice across a border is copied, others are views."""

    def __init__(self, parts: Sequence[Array]) -> None:
        self._parts = list(parts)
        self._ends = np.cumsum([len(part) for part in parts])
        self.dtype = parts[0].dtype
        self.shape = (int(self._ends[-1]),)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> Any:
        if not isinstance(key, slice):
            return self._one(int(key))
        start, stop, step = key.indices(len(self))
        if step != 1:
            return np.asarray(self)[key]
        pieces = []
        while start < stop:
            at = int(np.searchsorted(self._ends, start, side="right"))
            before = int(self._ends[at - 1]) if at else 0
            end = min(stop, int(self._ends[at]))
            pieces.append(self._parts[at][start - before : end - before])
            start = end
        return pieces[0] if len(pieces) == 1 else np.concatenate([np.empty(0, self.dtype), *pieces])

    def _one(self, place: int) -> Any:
        place += len(self) if place < 0 else 0
        if not 0 <= place < len(self):
            raise IndexError(place)
        return self[place : place + 1][0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        whole: Array = np.concatenate(self._parts)
        return whole if dtype is None else whole.astype(dtype)

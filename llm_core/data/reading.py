"""Reading a corpus in slices of bounded size: what one worker encodes at a time, and what memory is spent on."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from llm_core.data import tables
from llm_core.data.mixture import Sample, place_of
from llm_core.storage.products import Blob

SLICE_BYTES = 8_000_000
"""Uncompressed bytes of a slice, about: a second of encoding, so that a run that is asked to end does so soon."""
BATCH_BYTES = 1_000_000
MOST_ROWS = 1_024
Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Slice:
    """Rows `first` to `stop` of a row group of a file, read `batch` rows at a time."""

    file: Blob | Path
    group: int
    first: int
    stop: int
    batch: int

    @property
    def name(self) -> str:
        """The file, for messages."""
        return str(self.file if isinstance(self.file, Path) else self.file.path)


def slices(*files: Blob | Path) -> Iterator[Slice]:
    """Parquet files in slices, in the order of their rows."""
    for file in files:
        with tables.opened(file) as parquet:
            metadata = parquet.metadata
        for group in range(metadata.num_row_groups):
            rows = metadata.row_group(group).num_rows
            row_bytes = max(1, metadata.row_group(group).total_byte_size // max(1, rows))
            batch = min(max(1, BATCH_BYTES // row_bytes), MOST_ROWS)
            step = batch * max(1, SLICE_BYTES // (row_bytes * batch))
            for first in range(0, rows, step):
                yield Slice(file, group, first, min(rows, first + step), batch)


def read(piece: Slice, columns: Sequence[str]) -> Iterator[Any]:
    """The record batches of a slice."""
    with tables.opened(piece.file) as file:
        at = 0
        for batch in file.iter_batches(piece.batch, row_groups=[piece.group], columns=list(columns)):
            first, stop = max(piece.first - at, 0), min(piece.stop - at, batch.num_rows)
            if first < stop:
                yield batch.slice(first, stop - first)
            at += batch.num_rows
            if at >= piece.stop:
                return


@dataclass(frozen=True, slots=True)
class Survey:
    """Every document of a split that is written, and every training dialogue, as four numbers each [n].

    `source`: index into `sources`, -1 for a dialogue. `train`: whether it is trained on. `place`: a hash of its id in
    [0, 1). `size`: UTF-8 bytes.
    """

    sources: list[str]
    source: Array
    train: Array
    place: Array
    size: Array


Rows = tuple[list[str], Array, Array, Array, Array]
"""The fields of a `Survey`, of some of its rows."""


def survey_documents(job: tuple[Slice, Sequence[str]]) -> Rows:
    """The documents of a slice, of the splits that are written."""
    piece, splits = job
    names: dict[str, int] = {}
    source, train, place, size = array("i"), array("b"), array("d"), array("q")
    for batch in read(piece, ("id", "source", "split", "text")):
        lengths = pc.fill_null(pc.binary_length(batch.column("text")), 0).to_pylist()
        rows = zip(*(batch.column(name).to_pylist() for name in ("id", "source", "split")), lengths, strict=True)
        for key, name, split, length in rows:
            if split in splits:
                source.append(names.setdefault(name, len(names)))
                train.append(split == "train")
                place.append(place_of("sample", key))
                size.append(length)
    return list(names), np.asarray(source), np.asarray(train, dtype=bool), np.asarray(place), np.asarray(size)


def survey_dialogues(piece: Slice) -> Rows:
    """The training dialogues of a slice."""
    found = [
        (place_of("sample", key), sum(len(text.encode("utf-8", "replace")) for text in texts))
        for key, texts in _dialogues(piece)
    ]
    place, size = np.array([at for at, _ in found], "f8"), np.array([length for _, length in found], "i8")
    return [], np.full(len(found), -1, "i4"), np.ones(len(found), bool), place, size


def surveyed(parts: Iterable[Rows]) -> Survey:
    """The survey of a corpus from those of its slices, in order. About 24 bytes of memory a document."""
    names: dict[str, int] = {}
    columns: list[list[Array]] = [[np.zeros(0, kind)] for kind in ("i4", "?", "f8", "i8")]
    for known, source, train, place, size in parts:
        numbers = np.array([*(names.setdefault(name, len(names)) for name in known), -1], "i4")
        for column, values in zip(columns, (numbers[source], train, place, size), strict=True):
            column.append(values)
    source, train, place, size = map(np.concatenate, columns)
    return Survey(list(names), source, train, place, size)


def sampled_documents(job: tuple[Slice, Mapping[str, float], Sample]) -> list[str]:
    """What the sample takes of the training documents of a slice, each as often as its source's weight says."""
    piece, weights, sample = job
    found: list[str] = []
    for batch in read(piece, ("id", "source", "split", "text")):
        chosen = batch.filter(pc.equal(batch.column("split"), "train"))
        columns = (chosen.column(name).to_pylist() for name in ("id", "source", "text"))
        for key, name, text in zip(*columns, strict=True):
            if text:
                found += sample.take(key, weights[name], [text])
    return found


def sampled_dialogues(job: tuple[Slice, Sample]) -> list[str]:
    """What the sample takes of the training dialogues of a slice."""
    piece, sample = job
    return [text for key, texts in _dialogues(piece) for text in sample.take(key, 1.0, texts)]


def _dialogues(piece: Slice) -> Iterator[tuple[str, list[str]]]:
    """(id, what is said) of each training dialogue."""
    for batch in read(piece, ("id", "split", "messages")):
        for row in batch.to_pylist():
            if row["split"] == "train":
                yield row["id"], [message["content"] for message in row["messages"]]

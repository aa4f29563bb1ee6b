"""Reading a corpus in slices of bounded size: what one worker encodes at a time, and what memory is spent on."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
import pyarrow.parquet as pq

from llm_core.data.mixture import place_of

SLICE_BYTES = 8_000_000
"""Uncompressed bytes of a slice, about: a second of encoding, so that a run that is asked to end does so soon."""
BATCH_BYTES = 1_000_000
MOST_ROWS = 1_024
Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Slice:
    """Rows `first` to `stop` of a row group, read `batch` rows at a time."""

    path: Path
    group: int
    first: int
    stop: int
    batch: int


def slices(path: Path) -> Iterator[Slice]:
    """A Parquet file in slices, in the order of its rows."""
    metadata = pq.read_metadata(path)
    for group in range(metadata.num_row_groups):
        rows = metadata.row_group(group).num_rows
        row_bytes = max(1, metadata.row_group(group).total_byte_size // max(1, rows))
        batch = min(max(1, BATCH_BYTES // row_bytes), MOST_ROWS)
        step = batch * max(1, SLICE_BYTES // (row_bytes * batch))
        for first in range(0, rows, step):
            yield Slice(path, group, first, min(rows, first + step), batch)


def read(piece: Slice, columns: Sequence[str]) -> Iterator[Any]:
    """The record batches of a slice."""
    state = piece.path.stat()
    metadata = _metadata(piece.path, state.st_mtime_ns, state.st_size)
    with pq.ParquetFile(piece.path, metadata=metadata, pre_buffer=False) as file:
        at = 0
        for batch in file.iter_batches(piece.batch, row_groups=[piece.group], columns=list(columns)):
            first, stop = max(piece.first - at, 0), min(piece.stop - at, batch.num_rows)
            if first < stop:
                yield batch.slice(first, stop - first)
            at += batch.num_rows
            if at >= piece.stop:
                return


@lru_cache(4)
def _metadata(path: Path, changed: int, size: int) -> Any:  # noqa: ARG001  (they tell one file at a path from the next)
    return pq.read_metadata(path)


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


def survey(corpus: Path, splits: Sequence[str]) -> Survey:
    """Walk through a corpus once. About 24 bytes of memory a document."""
    names: dict[str, int] = {}
    source, train, place, size = array("i"), array("b"), array("d"), array("q")
    for piece in slices(corpus / "documents.parquet"):
        for batch in read(piece, ("id", "source", "split", "text")):
            lengths = pc.fill_null(pc.binary_length(batch.column("text")), 0).to_pylist()
            rows = zip(*(batch.column(name).to_pylist() for name in ("id", "source", "split")), lengths, strict=True)
            for key, name, split, length in rows:
                if split in splits:
                    source.append(names.setdefault(name, len(names)))
                    train.append(split == "train")
                    place.append(place_of("sample", key))
                    size.append(length)
    for key, texts in training_dialogues(corpus):
        source.append(-1)
        train.append(True)
        place.append(place_of("sample", key))
        size.append(sum(len(text.encode("utf-8", "replace")) for text in texts))
    flags = np.asarray(train, dtype=bool)
    return Survey(list(names), np.asarray(source), flags, np.asarray(place), np.asarray(size))


def training_dialogues(corpus: Path) -> Iterator[tuple[str, list[str]]]:
    """(id, what is said) of each training dialogue."""
    for piece in slices(corpus / "dialogues.parquet"):
        for batch in read(piece, ("id", "split", "messages")):
            for row in batch.to_pylist():
                if row["split"] == "train":
                    yield row["id"], [message["content"] for message in row["messages"]]


def training_documents(corpus: Path) -> Iterator[tuple[str, str, str]]:
    """(id, source, text) of each training document."""
    for piece in slices(corpus / "documents.parquet"):
        for batch in read(piece, ("id", "source", "split", "text")):
            chosen = batch.filter(pc.equal(batch.column("split"), "train"))
            columns = (chosen.column(name).to_pylist() for name in ("id", "source", "text"))
            for key, name, text in zip(*columns, strict=True):
                if text:
                    yield key, name, text

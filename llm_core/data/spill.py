"""Records that wait for the corpus to be written; who lays them down hands back only where they are.

In a folder each thread of a worker appends to a file of its own; in a store every batch of records is a file.

A record is a few fields as JSON and a text. What must be compared between documents stands in the index: 150 bytes a
document and the length of its URL, as Arrow columns. Records are read again one by one in whatever order the corpus
takes, which Parquet cannot do without unpacking a whole row group for each.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import threading
import uuid
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from numpy.typing import NDArray

from llm_core.data.minhash import BYTES
from llm_core.storage.places import Place

INDEX = pa.schema(
    [
        ("source", pa.int32()),
        ("kind", pa.int8()),
        ("url", pa.large_string()),
        ("tie_high", pa.uint64()),
        ("tie_low", pa.uint64()),
        ("id_high", pa.uint64()),
        ("id_low", pa.uint64()),
        ("address", pa.uint64()),
        ("reason", pa.large_string()),
        ("part", pa.uint64()),
        ("offset", pa.int64()),
        ("fields", pa.int32()),
        ("size", pa.int32()),
        ("signature", pa.binary(BYTES)),
    ]
)
"""One row a record. tie: hash of the record, so that the order of equal URLs depends on content alone; address: hash of
the canonical URL, 0 if there is none; fields, size: bytes of the JSON and of the text. Large strings: all URLs together
may take more than 2 GiB, which is where the offsets of plain ones end."""
_HALF = 2**64 - 1
_TOGETHER = 1 << 13
"""Rows of the index that are laid together."""


@dataclass(frozen=True, slots=True)
class Record:
    """What a worker found out about one row. `identity`: hex id of what it says; `kind`: its place among the kinds."""

    kind: int
    url: str | None
    text: str
    identity: str
    reason: str | None = None
    address: int = 0
    signature: bytes | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)


@lru_cache(1_000)
def _part_of(process: int, thread: int) -> int:  # noqa: ARG001
    return uuid.uuid4().int & _HALF


def file_of(part: int) -> str:
    """The name of the file that holds a part."""
    return f"{part:016x}.records"


def write(place: Place, source: int, records: Iterable[Record]) -> pa.RecordBatch:
    """Lay records down in `place`; returns their rows of the index, in order."""
    if place.remote:  # what is in a store cannot grow; a name of its own, as a batch may be done twice
        part, buffer = uuid.uuid4().int & _HALF, io.BytesIO()
        found = _append(buffer, part, source, records)
        if found.num_rows:
            place.write(file_of(part), buffer.getvalue())
        return found
    part = _part_of(os.getpid(), threading.get_ident())
    with open(Path(place.root, file_of(part)), "ab") as file:
        return _append(file, part, source, records)


def _append(file: Any, part: int, source: int, records: Iterable[Record]) -> pa.RecordBatch:
    columns: dict[str, list[Any]] = {name: [] for name in INDEX.names}
    for record in records:
        fields = json.dumps(record.fields, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
        text = record.text.encode("utf-8", "replace")
        tie = xxhash.xxh3_128_intdigest(fields + text)
        identity = int(record.identity, 16)
        row: tuple[Any, ...] = (source, record.kind, _encodable(record.url or ""), tie >> 64, tie & _HALF)
        row += (identity >> 64, identity & _HALF, record.address, record.reason, part, file.tell())
        row += (len(fields), len(text), record.signature)
        for column, value in zip(columns.values(), row, strict=True):
            column.append(value)
        file.write(fields)
        file.write(text)
    return pa.RecordBatch.from_pydict(columns, schema=INDEX)


def _encodable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


class Findings:
    """The index of all records; signatures go to a file beside them.

    Small batches are laid together, copied: a batch of 16 rows takes six times what its values need, and one that was
    read from the journal holds its signatures as long as any other column is there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.signatures = folder / "signatures"
        self._batches: list[pa.RecordBatch] = []
        self._new: list[pa.RecordBatch] = []
        self._waiting = 0
        self._rows = array("q")
        self._signed = 0
        self.signatures.write_bytes(b"")

    def add(self, batch: pa.RecordBatch) -> None:
        """Take in the rows that `write` returned."""
        column = batch["signature"]
        there = column.is_valid().to_numpy(zero_copy_only=False)
        self._rows.frombytes(np.where(there, self._signed + np.cumsum(there) - 1, -1).astype(np.int64).tobytes())
        self._signed += int(there.sum())
        with open(self.signatures, "ab") as file:
            file.write(b"".join(column.drop_null().to_pylist()))
        self._new.append(batch.drop_columns(["signature"]))
        self._waiting += batch.num_rows
        if self._waiting >= _TOGETHER:
            self._settle()

    def _settle(self) -> None:
        if self._new:
            self._batches.append(pa.concat_batches(self._new))
            self._new.clear()
            self._waiting = 0

    def ordered(self) -> tuple[pa.Table, NDArray[np.int64]]:
        """(the index by kind, source, URL and content, the row of each record's signature or -1); asked for once."""
        self._settle()
        schema = pa.schema([field for field in INDEX if field.name != "signature"])
        table = pa.Table.from_batches(self._batches, schema)
        self._batches.clear()
        keys = [(name, "ascending") for name in ("kind", "source", "url", "tie_high", "tie_low")]
        order = pc.sort_indices(table, sort_keys=keys)
        columns = []
        for name in schema.names:  # one by one, so that the index is not there twice
            columns.append(table[name].take(order))
            table = table.drop_columns([name])
        rows = np.frombuffer(self._rows, np.int64)[order.to_numpy()]
        return pa.Table.from_arrays(columns, schema=schema), rows


class Journal:
    """Rows of the index as they were handed back, batch by batch, so that work that was cut off goes on behind them."""

    def __init__(self, folder: Path, key: str, records: Place | None = None) -> None:
        """Those of the same `key` are kept; others, and the records they name, are removed.

        `records` is where the records are, if not in `folder` too.
        """
        self._place, self._path = records or Place(str(folder)), folder / "journal"
        known = self._path.is_file() and next(self._entries(), (b"", 0))[0] == key.encode()
        if not known:
            shutil.rmtree(folder, ignore_errors=True)
            if self._place.remote:
                self._place.clear()
            folder.mkdir(parents=True)
            self._append(key.encode())

    def read(self) -> Iterator[pa.RecordBatch]:
        """The batches whose records are all there, in the order in which they were added; what follows is cut off."""
        entries = self._entries()
        _, whole = next(entries)
        sizes = self._place.sizes()
        for data, end in entries:
            batch = pa.ipc.open_stream(data).read_next_batch()
            if not _are_there(batch, sizes):
                break
            whole = end
            yield batch
        os.truncate(self._path, whole)

    def add(self, batch: pa.RecordBatch) -> None:
        """Write a batch down."""
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, batch.schema) as writer:
            writer.write_batch(batch)
        self._append(sink.getvalue().to_pybytes())

    def _append(self, data: bytes) -> None:
        with open(self._path, "ab") as file:
            file.write(len(data).to_bytes(8, "little") + xxhash.xxh3_64_digest(data) + data)

    def _entries(self) -> Iterator[tuple[bytes, int]]:
        """(data, where it ends) of each entry that was written whole."""
        with open(self._path, "rb") as file:
            while len(head := file.read(16)) == 16:
                data = file.read(int.from_bytes(head[:8], "little"))
                if xxhash.xxh3_64_digest(data) != head[8:]:
                    return
                yield data, file.tell()


def _are_there(batch: pa.RecordBatch, sizes: Mapping[str, int]) -> bool:
    columns = (batch[name].to_pylist() for name in ("part", "offset", "fields", "size"))
    ends: dict[int, int] = {}
    for part, offset, fields, size in zip(*columns, strict=True):
        ends[part] = max(ends.get(part, 0), offset + fields + size)
    return all(sizes.get(file_of(part), -1) >= end for part, end in ends.items())


WINDOW_ROWS, WINDOW_BYTES = 4_000, 32_000_000
Where = tuple[int, int, int, int]
"""part, offset, bytes of the fields, bytes of the text."""


def read(place: Place, wanted: Sequence[Where]) -> Iterator[tuple[dict[str, Any], str]]:
    """(fields, text) of records by their places in the index, in the order in which they are wanted."""
    first = 0
    while first < len(wanted):
        stop, size = first, 0
        while stop < len(wanted) and stop - first < WINDOW_ROWS and size < WINDOW_BYTES:
            size += wanted[stop][2] + wanted[stop][3]
            stop += 1
        window = wanted[first:stop]
        found = place.ranges([(file_of(part), at, fields + text) for part, at, fields, text in window])
        for (_, _, fields, _), data in zip(window, found, strict=True):
            yield json.loads(data[:fields]), data[fields:].decode(errors="ignore")
        first = stop


def places(index: pa.Table) -> list[Where]:
    """Where the records of rows of an index are."""
    return list(zip(*(index[name].to_pylist() for name in ("part", "offset", "fields", "size")), strict=True))

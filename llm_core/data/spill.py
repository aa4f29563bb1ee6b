"""Records that wait on disk: each thread of a worker appends to a file of its own, and hands back only where they are.

A record is a few fields as JSON and a text. What must be compared between documents stands in the index: 150 bytes a
document and the length of its URL, as Arrow columns. Records are read again one by one in whatever order the corpus
takes, which Parquet cannot do without unpacking a whole row group for each.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
import uuid
from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash
from numpy.typing import NDArray

from llm_core.data.minhash import BYTES

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


def _file(folder: Path, part: int) -> Path:
    return folder / f"{part:016x}.records"


def write(folder: Path, source: int, records: Iterable[Record]) -> pa.RecordBatch:
    """Append the records to this thread's file in `folder`; returns their rows of the index, in order."""
    part = _part_of(os.getpid(), threading.get_ident())
    columns: dict[str, list[Any]] = {name: [] for name in INDEX.names}
    with open(_file(folder, part), "ab") as file:
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

    def __init__(self, folder: Path, key: str) -> None:
        """Those of the same `key` are kept; others, and the records they name, are removed."""
        self._folder, self._path = folder, folder / "journal"
        known = self._path.is_file() and next(self._entries(), (b"", 0))[0] == key.encode()
        if not known:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            self._append(key.encode())

    def read(self) -> Iterator[pa.RecordBatch]:
        """The batches whose records are all there, in the order in which they were added; what follows is cut off."""
        entries = self._entries()
        _, whole = next(entries)
        for data, end in entries:
            batch = pa.ipc.open_stream(data).read_next_batch()
            if not self._has(batch):
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

    def _has(self, batch: pa.RecordBatch) -> bool:
        columns = (batch[name].to_pylist() for name in ("part", "offset", "fields", "size"))
        ends: dict[int, int] = {}
        for part, offset, fields, size in zip(*columns, strict=True):
            ends[part] = max(ends.get(part, 0), offset + fields + size)
        files = {_file(self._folder, part): end for part, end in ends.items()}
        return all(path.is_file() and path.stat().st_size >= end for path, end in files.items())


class Records:
    """Reads records by their place in the index."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[int, int] = {}

    def __enter__(self) -> Records:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._files.values():
            os.close(file)

    def read(self, part: int, offset: int, fields: int, size: int) -> tuple[dict[str, Any], str]:
        """(fields, text) of a record."""
        if part not in self._files:
            self._files[part] = os.open(_file(self._folder, part), os.O_RDONLY)
        data = os.pread(self._files[part], fields + size, offset)
        return json.loads(data[:fields]), data[fields:].decode()

    def each(self, index: pa.Table) -> Iterator[tuple[dict[str, Any], str]]:
        """(fields, text) of the rows of an index, in order."""
        for batch in index.select(["part", "offset", "fields", "size"]).to_batches(max_chunksize=1_000):
            for place in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                yield self.read(*place)

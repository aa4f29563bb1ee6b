"""The last pass: records are read again in the order of the corpus, and written for good by whoever has time.

What becomes of a record is known before: from the index, and for sources whose documents lose what earlier ones had,
from going through them once in order (`sift`). So the corpus is divided into files by the index alone, and each file is
one piece of work: who writes it, and when, changes nothing. Only the index passes through the caller.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llm_core.artifacts import Entry
from llm_core.data import spill
from llm_core.data.corpus import SCHEMAS, TableWriter, Tally
from llm_core.data.dedup import Duplicates, Hashes, Pieces
from llm_core.data.document import KINDS, identity, split_of
from llm_core.data.filters import too_short
from llm_core.data.tables import table_name
from llm_core.storage.places import Place
from llm_core.storage.products import Output

EXCERPT = 200
FILE_ROWS, FILE_BYTES = 100_000, 128_000_000
"""A file of the corpus ends behind so many rows or bytes of records."""
_WHERE = ("part", "offset", "fields", "size", "id_high", "id_low")
_COLUMNS = ("kind", "source", "reason", *_WHERE)
_LETTER_BYTES = 4


@dataclass(frozen=True, slots=True)
class SourceRules:
    """What a source's documents undergo once all others are known."""

    name: str
    repeated_paragraphs: bool = False
    repeated_lines: bool = False
    min_words: int = 0

    @property
    def in_order(self) -> bool:
        """Whether what becomes of a document depends on those before it."""
        return self.repeated_paragraphs or self.repeated_lines


def decided(index: pa.Table, copies: Duplicates) -> pa.Table:
    """The index with the reason of every row, and the id of the record that stays for a copy, or has copies."""
    lost = np.flatnonzero(copies.of >= 0)
    why: list[str | None] = [copies.reason(int(place)) for place in lost]
    reasons = np.full(len(index), None, object)
    reasons[lost] = why
    leaders = copies.leaders()
    clusters = np.full(len(index), None, object)
    there = np.flatnonzero(leaders >= 0)
    clusters[there] = [copies.identity(int(leader)) for leader in leaders[there]]
    reason = pc.coalesce(index["reason"], pa.array(reasons, pa.string()))
    kept = index.select(_COLUMNS).set_column(_COLUMNS.index("reason"), "reason", reason)
    return kept.append_column("cluster", pa.array(clusters, pa.string()))


@dataclass(frozen=True, slots=True)
class Sifting:
    """Documents of sources whose documents lose what earlier ones had: their index lies in `records`."""

    records: Place
    rules: tuple[SourceRules, ...]
    again: bool
    """Whether a text that becomes the same as an earlier one, once pieces are gone, is dropped."""


SIFT, SIFTED = "sift.arrow", "sifted.arrow"


def sifted(index: pa.Table, job: Sifting, work: Any) -> tuple[pa.Table, dict[str, int]]:
    """The index after `work(job)` has gone through what must be seen in order, and what was removed."""
    ordered = [number for number, rules in enumerate(job.rules) if rules.in_order]
    undecided = pc.and_(pc.equal(index["kind"], 0), pc.is_null(index["reason"]))
    mask = pc.and_(undecided, pc.is_in(index["source"], pa.array(ordered, pa.int32())))
    rows = np.flatnonzero(mask.to_numpy())
    if not len(rows):
        return index, {"repeated_paragraphs": 0, "repeated_lines": 0}
    job.records.write(SIFT, _packed(index.take(rows).select(["source", *_WHERE])))
    removed: dict[str, int] = work(job)
    changed = _unpacked(job.records.read(SIFTED))
    places = rows[changed["row"].to_numpy()]
    for name in _WHERE:
        column = index[name].to_numpy().copy()
        column[places] = changed[name].to_numpy()
        index = index.set_column(index.schema.get_field_index(name), name, pa.array(column))
    reasons = index["reason"].to_numpy(zero_copy_only=False).copy()
    reasons[places] = changed["reason"].to_numpy(zero_copy_only=False)
    return index.set_column(index.schema.get_field_index("reason"), "reason", pa.array(reasons, pa.string())), removed


def _packed(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def _unpacked(data: bytes) -> pa.Table:
    return pa.ipc.open_stream(data).read_all()


def sift(job: Sifting) -> dict[str, int]:
    """Go through documents in order; what changes is laid down beside the records. Pieces that were removed."""
    index = _unpacked(job.records.read(SIFT))
    seen = _Earlier(job)
    changed: list[pa.Table] = []
    waiting: list[tuple[int, int, spill.Record]] = []
    size = 0
    columns = zip(*(index[name].to_pylist() for name in ("source", "id_high", "id_low")), strict=True)
    found = spill.read(job.records, spill.places(index))
    for row, ((source, high, low), (fields, text)) in enumerate(zip(columns, found, strict=True)):
        key = f"{high:016x}{low:016x}"
        reason, fresh = seen.against(job.rules[source], text, key, low)
        if reason is not None:
            changed.append(_changes([row], index.slice(row, 1), reason))
        elif fresh is not text and fresh != text:
            waiting.append((row, source, spill.Record(0, None, fresh, identity(fresh), None, fields=fields)))
            size += len(fresh)
        if size >= spill.WINDOW_BYTES:
            changed += _laid_down(job.records, waiting)
            size = 0
    changed += _laid_down(job.records, waiting)
    job.records.write(SIFTED, _packed(pa.concat_tables(changed) if changed else _changes([], index.slice(0, 0), None)))
    return seen.removed


def _laid_down(place: Place, waiting: list[tuple[int, int, spill.Record]]) -> list[pa.Table]:
    """Write the changed records and forget them; where they are now."""
    if not waiting:
        return []
    rows = [row for row, _, _ in waiting]
    batch = spill.write(place, waiting[0][1], [record for _, _, record in waiting])
    waiting.clear()
    return [_changes(rows, pa.Table.from_batches([batch]), None)]


def _changes(rows: Sequence[int], where: pa.Table, reason: str | None) -> pa.Table:
    reasons = pa.array([reason] * len(rows), pa.string())
    columns = {name: where[name] for name in _WHERE}
    return pa.table({"row": pa.array(rows, pa.int64()), "reason": reasons, **columns})


class _Earlier:
    """Remembers the pieces and ids of documents that came before."""

    def __init__(self, job: Sifting) -> None:
        self._again = job.again
        self._paragraphs = {rules.name: Pieces() for rules in job.rules if rules.repeated_paragraphs}
        self._lines = {rules.name: Pieces(lines=True) for rules in job.rules if rules.repeated_lines}
        self._written = Hashes()

    @property
    def removed(self) -> dict[str, int]:
        return {
            "repeated_paragraphs": sum(pieces.removed for pieces in self._paragraphs.values()),
            "repeated_lines": sum(pieces.removed for pieces in self._lines.values()),
        }

    def against(self, rules: SourceRules, text: str, key: str, low: int) -> tuple[str | None, str]:
        """(reason or None, the text without pieces that came before)."""
        paragraphs, lines = self._paragraphs.get(rules.name), self._lines.get(rules.name)
        if self._again and not self._written.add(low):
            return "duplicate", text
        fresh = paragraphs.fresh(text) if paragraphs else text
        fresh = lines.fresh(fresh) if lines else fresh
        if fresh == text:
            return None, text
        changed = identity(fresh)
        if self._again and changed != key and not self._written.add(int(changed[16:], 16)):
            return "duplicate", fresh
        return ("repeats_others" if too_short(fresh, rules.min_words) else None), fresh


@dataclass(frozen=True, slots=True)
class File:
    """One file of the corpus: the rows of the index that it is made of, in order."""

    table: str
    number: int
    index: pa.Table
    records: Place
    output: Output
    sources: tuple[str, ...]
    validation: float


@dataclass(frozen=True, slots=True)
class Written:
    """A file that was written: its entry in the manifest, how many rows of the index it took, what was counted."""

    name: str
    entry: Entry
    rows: int
    tally: Tally


def files(index: pa.Table, records: Place, output: Output, sources: Sequence[str], validation: float) -> Iterator[File]:
    """The files of a corpus from its decided index. Every table has one at least."""
    stays = pc.is_null(index["reason"]).to_numpy()
    kind = index["kind"].to_numpy()
    sizes = index["size"].to_numpy().astype(np.int64)
    for table in SCHEMAS:
        if table in KINDS:
            rows, size = np.flatnonzero(stays & (kind == KINDS.index(table))), sizes
        elif table == "dropped":
            rows, size = np.flatnonzero(~stays), np.minimum(sizes, EXCERPT * _LETTER_BYTES)
        else:
            hit = pc.fill_null(pc.equal(index["reason"], "contaminated"), False).to_numpy(zero_copy_only=False)
            rows, size = np.flatnonzero(hit), np.zeros_like(sizes)
        ends = np.cumsum(size[rows] + index["fields"].to_numpy()[rows])
        first = number = 0
        while first < len(rows) or number == 0:
            before = int(ends[first - 1]) if first else 0
            stop = min(len(rows), first + FILE_ROWS, int(np.searchsorted(ends, before + FILE_BYTES)) + 1)
            part = index.take(rows[first:stop])
            yield File(table, number, part, records, output, tuple(sources), validation)
            first, number = stop, number + 1


def write(job: File) -> Written:
    """Write a file of the corpus into its product."""
    tally = Tally()

    def fill(path: Path) -> None:
        with TableWriter(path, job.table) as writer:
            _FILLERS.get(job.table, _keep)(job, writer, tally)

    name, entry = job.output.put(table_name(job.table, job.number), fill)
    return Written(name, entry, len(job.index) if job.table != "contaminated" else 0, tally)


def _keep(job: File, writer: TableWriter, tally: Tally) -> None:
    names = ("source", "id_high", "id_low", "cluster")
    about = zip(*(job.index[name].to_pylist() for name in names), strict=True)
    found = spill.read(job.records, spill.places(job.index))
    for (source, high, low, cluster), (fields, text) in zip(about, found, strict=True):
        if job.table != "documents":
            tally.keep(job.table, fields)
            writer.append(fields)
            continue
        name, key = job.sources[source], f"{high:016x}{low:016x}"
        tally.masked.update({(name, kind): count for kind, count in fields.get("masked", {}).items()})
        group = fields["group"] or key
        row = {**fields, "id": key, "source": name, "text": text, "group": group, "cluster": cluster}
        row["split"] = split_of(group, job.validation)
        size = len(text.encode())
        tally.keep("documents", row, size)
        writer.append(row, size)


def _dropped(job: File) -> Iterator[tuple[str, dict[str, Any], Mapping[str, Any]]]:
    """(kind, what is written of it, fields) of rows that are dropped; of a text only the beginning is read."""
    places = [
        (part, offset, fields, min(size, EXCERPT * _LETTER_BYTES))
        for part, offset, fields, size in spill.places(job.index)
    ]
    about = zip(*(job.index[name].to_pylist() for name in ("kind", "source", "reason", "cluster")), strict=True)
    for (kind, source, reason, cluster), (fields, text) in zip(about, spill.read(job.records, places), strict=True):
        row = {"source": job.sources[source], "url": fields["url"], "digest": fields["digest"], "what": KINDS[kind]}
        yield KINDS[kind], {**row, "reason": reason, "excerpt": text[:EXCERPT], "cluster": cluster}, fields


def _drop(job: File, writer: TableWriter, tally: Tally) -> None:
    for what, row, _ in _dropped(job):
        tally.drop(what, row["source"], row["reason"])
        writer.append(row)


def _tell_hits(job: File, writer: TableWriter, tally: Tally) -> None:
    """A row for each piece of an evaluation set that a dropped row holds."""
    for _, row, fields in _dropped(job):
        for name, item, words in fields.get("hits", ()):
            traced = {key: row[key] for key in ("source", "url", "digest", "what")}
            tally.hits[name] += 1
            writer.append({**traced, "set": name, "item": item, "words": words})


_FILLERS = {"dropped": _drop, "contaminated": _tell_hits}

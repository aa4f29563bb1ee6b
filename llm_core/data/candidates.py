"""What a worker does with a few rows of one source: prepare them, sign them, and lay them down as records."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import xxhash

from llm_core.data import decontaminate, dialogues, forget_list, spill, tables
from llm_core.data.document import KINDS, identity
from llm_core.data.filters import listed_url
from llm_core.data.kit import Kit
from llm_core.data.minhash import signatures
from llm_core.data.prepare import EXCERPT, Batch, Candidate, PrepareOptions, prepare
from llm_core.data.web.urls import canonical
from llm_core.storage.places import Place
from llm_core.storage.products import Blob

TASK_BYTES = 4_000_000
"""Text that a worker takes at once, about."""
CARRIED_BYTES = 64_000_000
"""Row groups larger than this are read once, here, and carried to the workers; from a store each is one task."""
HEADER_BYTES = 100_000
"""A record is not longer than its body and this, compressed or not."""
FORGOTTEN = "forgotten"
PAGES = 16
"""Pages that a worker takes at once: they cost far more than their rows weigh."""


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Evaluation sets, and what counts as a piece of one; each process makes the index once."""

    files: tuple[Path, ...] = ()
    versions: tuple[tuple[int, int], ...] = ()
    """Of each file what changes with it, so that no process keeps an old index."""
    n: int = decontaminate.N
    shortest: int = decontaminate.SHORTEST
    fields: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """(file name, fields that are looked for)."""


@lru_cache(1)
def index_of(held_out: HeldOut) -> decontaminate.Index:
    """The index of evaluation sets. Raises `BadInput` for one that cannot be read."""
    return decontaminate.Index.build(
        held_out.files, n=held_out.n, shortest=held_out.shortest, fields=dict(held_out.fields)
    )


@dataclass(frozen=True, slots=True)
class Task:
    """Rows `start` to `start + count` of a row group of a file, or `rows` themselves, of the source of this number."""

    source: int
    name: str
    table: str
    """pages, documents, dialogues or preferences."""
    file: Blob
    spill: Place
    options: PrepareOptions
    shares: tuple[float, float]
    """Validation, feedback: shares of groups."""
    held_out: HeldOut = HeldOut()
    near_duplicates: bool = True
    forget: Path | None = None
    row_group: int = 0
    start: int = 0
    count: int = 0
    rows: pa.Table | None = None
    warc: Path | None = None
    """Folder of the segments of pages, if they are in a folder."""
    records: tuple[tuple[Blob, int, int], ...] = ()
    """(segment, offset, bytes) of each row's record, if they are in a store."""
    kit: Kit | None = None
    """Brings the files that paths in `options`, `held_out` and `forget` name, if workers do not see them."""

    @property
    def kind(self) -> str:
        """documents, dialogues or preferences."""
        return "documents" if self.table == "pages" else self.table


def divided(task: Task, segments: Mapping[str, Blob] | None = None) -> Iterator[Task]:
    """The whole file of `task` as tasks of a size that a worker likes; `segments` of pages that are in a store."""
    pages = task.table == "pages"
    spans = _Spans(task.file, segments) if pages and segments is not None else None
    with tables.opened(task.file) as file:
        for number in range(file.num_row_groups):
            group = file.metadata.row_group(number)
            each = max(1, group.total_byte_size // max(group.num_rows, 1))
            step = PAGES if pages else max(1, min(1_000, TASK_BYTES // each))
            large = group.total_byte_size > CARRIED_BYTES
            if pages or (large and not task.file.place.remote):
                for batch in file.iter_batches(step, row_groups=[number]):
                    rows = pa.Table.from_batches([batch])
                    records = tuple(map(spans.of, batch.to_pylist())) if spans else ()
                    yield replace(task, count=batch.num_rows, rows=rows, records=records)
            else:
                step = group.num_rows if large else step
                for start in range(0, group.num_rows, step):
                    yield replace(task, row_group=number, start=start, count=min(step, group.num_rows - start))


class _Spans:
    """How far a record may reach: as far as the next one that is listed, and not beyond its body's length."""

    def __init__(self, table: Blob, segments: Mapping[str, Blob]) -> None:
        self._segments = segments
        self._offsets: dict[str, list[int]] = {name: [] for name in segments}
        with tables.opened(table) as file:
            for batch in file.iter_batches(columns=["segment", "offset"]):
                for segment, offset in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                    self._offsets[segment].append(offset)
        for offsets in self._offsets.values():
            offsets.sort()

    def of(self, row: Mapping[str, Any]) -> tuple[Blob, int, int]:
        """(segment, offset, bytes) of a page's record."""
        segment, offsets = self._segments[row["segment"]], self._offsets[row["segment"]]
        at = bisect_right(offsets, row["offset"])
        end = offsets[at] if at < len(offsets) else segment.size
        most = row["offset"] + (row["bytes"] or 0) * 51 // 50 + HEADER_BYTES
        return segment, row["offset"], min(end, most, segment.size) - row["offset"]


def work(task: Task) -> tuple[int, pa.RecordBatch]:
    """(rows that were read, their rows of the index). Never raises for what a row holds."""
    if task.kit is not None:
        settled = {name: task.kit.settled(getattr(task, name)) for name in ("options", "held_out", "forget")}
        task = replace(task, kit=None, **settled)
    table = task.rows
    if table is None:
        table = _row_group(task.file, task.row_group).slice(task.start, task.count)
    rows = table.to_pylist()
    if task.records:
        place = task.records[0][0].place
        found = place.ranges([(blob.key, offset, size) for blob, offset, size in task.records])
        rows = [row | {"record": data} for row, data in zip(rows, found, strict=True)]
    records = _documents(task, rows) if task.kind == "documents" else _conversations(task, rows)
    return len(rows), spill.write(task.spill, task.source, records)


@lru_cache(1)
def _row_group(file: Blob, number: int) -> pa.Table:
    """A row group; the tasks that share it mostly follow each other."""
    with tables.opened(file) as parquet:
        return parquet.read_row_group(number)


def _documents(task: Task, rows: Sequence[dict[str, Any]]) -> list[spill.Record]:
    reasons = [listed_url(row["url"], task.options.filters.urls) for row in rows]
    wanted = [row for row, reason in zip(rows, reasons, strict=True) if reason is None]
    prepared = iter(prepare(Batch(task.name, wanted, task.options, task.warc))[1])
    forgotten = forget_list.read(task.forget)
    candidates = [
        _unless_forgotten(next(prepared), forgotten)
        if reason is None
        else Candidate(row["url"], "", reason, digest=row.get("digest"))
        for row, reason in zip(rows, reasons, strict=True)
    ]
    good = [place for place, candidate in enumerate(candidates) if candidate.reason is None]
    hits = dict(zip(good, _hits(task, [candidates[place].text for place in good]), strict=True))
    stay = [place for place in good if not hits[place]]
    signed: dict[int, bytes] = {}
    if task.near_duplicates:
        found, there = signatures([candidates[place].text for place in stay])
        signed = {place: found[at].tobytes() for at, place in enumerate(stay) if there[at]}
    return [_document(candidate, signed.get(place), hits.get(place, [])) for place, candidate in enumerate(candidates)]


def _unless_forgotten(candidate: Candidate, forgotten: forget_list.Forgotten) -> Candidate:
    """The candidate, or, if the forget list names its address, its raw digest or its text, what may be told of it."""
    if not forgotten:
        return candidate
    key = identity(candidate.text) if candidate.reason is None and forgotten.documents else None
    if not forgotten.holds(candidate.url, candidate.digest, key):
        return candidate
    return Candidate(candidate.url, "", FORGOTTEN, digest=candidate.digest)


def _hits(task: Task, texts: Sequence[str]) -> list[list[list[str]]]:
    """For each text [set, item, words] of what it shares with the evaluation sets."""
    if not task.held_out.files:
        return [[] for _ in texts]
    found = index_of(task.held_out).hits_of(texts)
    return [[[hit.set, hit.item, hit.words] for hit in hits] for hits in found]


def _document(candidate: Candidate, signature: bytes | None, hits: list[list[str]]) -> spill.Record:
    fields: dict[str, Any] = {
        "url": candidate.url,
        "digest": candidate.digest,
        "title": candidate.title,
        "language": candidate.language,
        "licence": candidate.licence,
        "date": candidate.date,
        "group": candidate.group,
    }
    reason = "contaminated" if hits else candidate.reason
    if reason is not None:
        fields |= {"hits": hits} if hits else {}
        return spill.Record(0, candidate.url, candidate.text[:EXCERPT], "0", reason, fields=fields)
    if candidate.masked:
        fields["masked"] = candidate.masked
    key = identity(candidate.text)
    return spill.Record(0, candidate.url, candidate.text, key, None, _address(candidate.url), signature, fields)


def _address(url: str | None) -> int:
    """A hash of the canonical URL; 0 for what is none."""
    try:
        known = canonical(url) if url else None
    except ValueError:
        return 0
    return xxhash.xxh3_64_intdigest(known.encode()) or 1 if known else 0


def _conversations(task: Task, rows: Sequence[dict[str, Any]]) -> Iterator[spill.Record]:
    clean = dialogues.dialogue if task.kind == "dialogues" else dialogues.preference
    spoken = "messages" if task.kind == "dialogues" else "prompt"
    found = []
    forgotten = forget_list.read(task.forget)
    for row in rows:
        digest = row.pop("digest", None) or xxhash.xxh3_128_hexdigest(json.dumps(row, sort_keys=True).encode())
        cleaned, reason = clean(row, task.name, task.shares)
        if forgotten.holds(cleaned["url"], digest, cleaned["id"]):
            reason, cleaned = FORGOTTEN, cleaned | {spoken: [], "group": ""}
        found.append((cleaned | {"digest": digest}, reason))
    texts = [
        "\n".join([*(message["content"] for message in cleaned[spoken]), cleaned.get("chosen", "")])
        for cleaned, _ in found
    ]
    for (cleaned, reason), hits in zip(found, _hits(task, texts), strict=True):
        if hits and reason is None:
            reason, cleaned = "contaminated", cleaned | {"hits": hits}
        first = cleaned[spoken][0]["content"] if cleaned[spoken] else ""
        yield spill.Record(
            KINDS.index(task.kind), cleaned["url"], first[:EXCERPT], cleaned["id"], reason, fields=cleaned
        )

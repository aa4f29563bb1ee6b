"""Takes what is forgotten out of raw data: rows out of Parquet files, records out of WARC segments.

No file is written in place, as products and crawl stores share files by hard links: each is written anew and takes the
old one's name. What remains keeps its bytes; a segment's records are copied as they are, and the table of pages
learns where each stands now.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash
from fastwarc import ArchiveIterator

from llm_core.data.document import KINDS
from llm_core.data.forget_list import Forgotten, address

_BLOCK = 1 << 20


def sweep(folder: Path, forgotten: Forgotten) -> Counter[str]:
    """Take what is forgotten out of one source of raw (pages.parquet with warc/, or rows); what was removed, by kind.

    Older copies of a page that no table lists go too.
    """
    removed: Counter[str] = Counter()
    if not forgotten:
        return removed
    for kind in KINDS:
        if (path := folder / f"{kind}.parquet").is_file():
            removed[kind] += _rewrite(path, lambda batch: pa.array([not gone for gone in _gone(batch, forgotten)]))
    if (folder / "pages.parquet").is_file():
        removed["pages"] += sweep_pages(folder / "pages.parquet", folder / "warc", forgotten)
    return +removed


def rows_held(path: Path, forgotten: Forgotten) -> int:
    """Rows of a Parquet file of raw data or of a corpus that the list names."""
    with pq.ParquetFile(path) as file:
        return sum(sum(_gone(batch, forgotten)) for batch in file.iter_batches(1_000))


def _gone(batch: pa.RecordBatch, forgotten: Forgotten) -> list[bool]:
    """For each row whether it is to be forgotten: by its URL, digest or id."""
    names = set(batch.schema.names)
    urls = batch.column("url").to_pylist() if "url" in names else [None] * batch.num_rows
    key = next((name for name in ("id", "cluster") if name in names), None)  # a dropped copy has its leader's id
    keys = batch.column(key).to_pylist() if key else [None] * batch.num_rows
    if "digest" in names:
        digests = batch.column("digest").to_pylist()
    else:
        digests = row_digests(batch) if forgotten.digests else [None] * batch.num_rows
    return [forgotten.holds(*row) for row in zip(urls, digests, keys, strict=True)]


def row_digests(batch: pa.RecordBatch) -> list[str]:
    """The digest that `clean` gives each raw row: of its text, or of the whole row as JSON."""
    if "text" in batch.schema.names:
        texts = ((text or "").encode("utf-8", "surrogatepass") for text in batch.column("text").to_pylist())
        return [xxhash.xxh3_128_hexdigest(text) for text in texts]
    return [xxhash.xxh3_128_hexdigest(json.dumps(row, sort_keys=True).encode()) for row in batch.to_pylist()]


def _rewrite(path: Path, stays: Callable[[pa.RecordBatch], pa.Array]) -> int:
    """Write a Parquet file anew without some rows; how many. A file that loses nothing is left alone."""
    with pq.ParquetFile(path) as file:
        before = int(file.metadata.num_rows)
        kept = sum(int(pc.sum(stays(batch)).as_py() or 0) for batch in file.iter_batches(1_000))
        if kept == before:
            return 0
        partial = path.with_name(f".{path.name}.part")
        with pq.ParquetWriter(partial, file.schema_arrow, compression="zstd") as writer:
            for batch in file.iter_batches(1_000):
                if (left := batch.filter(stays(batch))).num_rows:
                    writer.write_batch(left)
    os.replace(partial, path)
    return before - kept


def sweep_pages(table: Path, warc: Path, forgotten: Forgotten) -> int:
    """Take pages out of a table of pages and out of the segments that it names; how many rows went."""
    urls, segments = pages_held(table, forgotten)
    moved = {name: rewrite_segment(warc / name, urls, forgotten) for name in sorted(segments)}
    if not any(places is not None for places in moved.values()):
        return 0
    left = 0
    with pq.ParquetFile(table) as file:
        partial = table.with_name(f".{table.name}.part")
        with pq.ParquetWriter(partial, file.schema_arrow, compression="zstd") as writer:
            for batch in file.iter_batches(10_000):
                rows = [row for row in batch.to_pylist() if row["url"] not in urls]
                for row in rows:
                    if (places := moved[row["segment"]]) is not None:
                        row["offset"] = places[row["offset"]]
                left += len(rows)
                if rows:
                    writer.write_table(pa.Table.from_pylist(rows, schema=file.schema_arrow))
        before = file.metadata.num_rows
    os.replace(partial, table)
    return int(before) - left


def pages_held(table: Path, forgotten: Forgotten) -> tuple[set[str], set[str]]:
    """(addresses that a table of pages has and the list names, all segments of the table)."""
    urls: set[str] = set()
    segments: set[str] = set()
    with pq.ParquetFile(table) as file:
        for batch in file.iter_batches(10_000, columns=["url", "digest", "segment"]):
            columns = (column.to_pylist() for column in batch.columns)
            for url, digest, segment in zip(*columns, strict=True):
                segments.add(segment)
                if forgotten.holds(url, digest):
                    urls.add(url)
    return urls, segments


def records(segment: Path) -> Iterator[tuple[int, str | None]]:
    """(offset in bytes, address; None for what is no response) of each record of a segment."""
    with open(segment, "rb") as file:
        for record in ArchiveIterator(file, parse_http=False):
            yield record.stream_pos, record.headers.get("WARC-Target-URI")


def segment_holds(segment: Path, urls: Collection[str], forgotten: Forgotten) -> bool:
    """Whether a segment has a record of an address that is among `urls` or forgotten."""
    return any(_named(url, urls, forgotten) for _, url in records(segment))


def _named(url: str | None, urls: Collection[str], forgotten: Forgotten) -> bool:
    return url is not None and (url in urls or address(url) in urls or forgotten.names(url))


def rewrite_segment(
    segment: Path, urls: Collection[str], forgotten: Forgotten, target: Path | None = None
) -> dict[int, int] | None:
    """Write a segment anew without the records of some addresses; where each other one stands now, by its old offset.

    None if it holds none of them and was left alone. It takes the old one's place, or with `target` stands there beside
    it; a segment that loses every page is removed, or not written.
    """
    found = list(records(segment))
    goes = [_named(url, urls, forgotten) for _, url in found]
    if not any(goes):
        return None
    ends = [offset for offset, _ in found[1:]] + [segment.stat().st_size]
    kept = [(start, end) for (start, _), end, gone in zip(found, ends, goes, strict=True) if not gone]
    if all(gone for (_, url), gone in zip(found, goes, strict=True) if url is not None):
        if target is None:
            segment.unlink()
        return {}
    partial = segment.with_name(f".{segment.name}.part")
    places = _copy_members(segment, partial, kept)
    os.replace(partial, target or segment)
    return places


def _copy_members(source: Path, target: Path, members: list[tuple[int, int]]) -> dict[int, int]:
    """Copy byte ranges one after the other; where each stands now, by where it began."""
    places: dict[int, int] = {}
    with open(source, "rb") as whole, open(target, "wb") as part:
        for start, end in members:
            places[start] = part.tell()
            whole.seek(start)
            left = end - start
            while left > 0 and (block := whole.read(min(left, _BLOCK))):
                left -= len(block)
                part.write(block)
        part.flush()
        os.fsync(part.fileno())
    return places

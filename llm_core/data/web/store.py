"""Run a crawl in its own process, and take a snapshot of its store."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock

from llm_core.data.web.job import CrawlJob
from llm_core.data.web.ledger import Diff, Ledger
from llm_core.data.web.warc import recover

GRACE_SECONDS = 60.0
ROWS = 10_000
"""Pages of one row group of pages.parquet."""
_NUMBERS = ("offset", "status", "bytes")
PAGES = pa.schema(
    [
        (name, pa.int64() if name in _NUMBERS else pa.string())
        for name in (
            "url", "group", "digest", "content_type", "type", "segment", "offset", "fetched", "etag", "last_modified",
            "robots", "licence", "status", "bytes", "source",
        )
    ]
)  # fmt: skip


class CrawlFailed(RuntimeError):
    """The crawl's process did not end as it should; what it fetched so far is kept."""


def crawl(job: CrawlJob, scratch: Path) -> Generator[dict[str, Any], None, None]:
    """Run a crawl and yield its counts as they come; the last one has "reason" and "outcomes".

    One crawl at a time works on a store: another waits. When the caller stops listening, the crawl is asked to end.
    Raises `CrawlFailed` with the end of its log.
    """
    Path(job.store).mkdir(parents=True, exist_ok=True)
    job_file, log_file = scratch / "crawl.json", scratch / "crawl.log"
    job.write(job_file)
    with FileLock(Path(job.store) / "lock"), open(log_file, "wb") as log:
        command = [sys.executable, "-m", "llm_core.data.web.crawl", str(job_file)]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        last: dict[str, Any] = {}
        try:
            assert child.stdout is not None
            for line in child.stdout:
                last = json.loads(line)
                yield last
        except BaseException:
            child.terminate()
            raise
        finally:
            _wait(child)
    if child.returncode != 0 or "reason" not in last:
        tail = log_file.read_text(errors="replace").strip()[-2000:]
        raise CrawlFailed(f"the crawl of {job.start[0]} ended with exit status {child.returncode}: {tail}")


def _wait(child: subprocess.Popen[str]) -> None:
    try:
        child.communicate(timeout=GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
        child.communicate()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Pages that a snapshot lists, and what changed since the last one that was delivered."""

    pages: int
    diff: Diff


def snapshot(
    job: CrawlJob, out: Path, *, source: str, licence: str, group_of: Callable[[str], str] | None = None
) -> Snapshot:
    """Hard-link the store's segments into `out`/warc and list its pages in `out`/pages.parquet.

    Pages that an earlier job fetched and this one would not are left out. Memory does not grow with the pages.
    `group_of(url)` names what must not be divided between training and validation; None leaves it to the document.
    """
    store, admits = Path(job.store), job.admits()
    (out / "warc").mkdir(parents=True)
    recover(store / "warc")
    ledger = Ledger(store)
    segments: set[str] = set()
    pages = 0
    try:
        with pq.ParquetWriter(out / "pages.parquet", PAGES, compression="zstd") as writer:
            for rows in _batches(ledger.pages(admits)):
                for row in rows:
                    row |= {"licence": licence, "source": source, "group": group_of(row["url"]) if group_of else None}
                    row["type"] = (row["content_type"] or "").partition(";")[0].strip().lower() or None
                    segments.add(row["segment"])
                writer.write_table(pa.Table.from_pylist(rows, schema=PAGES))
                pages += len(rows)
        diff = ledger.diff(admits)
    finally:
        ledger.close()
    for segment in sorted(segments):
        link_or_copy(store / "warc" / segment, out / "warc" / segment)
    return Snapshot(pages, diff)


def _batches(rows: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    while batch := list(islice(rows, ROWS)):
        yield batch


def delivered(job: CrawlJob) -> None:
    """Remember that a product holds what the last snapshot had: the next diff is against it."""
    ledger = Ledger(Path(job.store))
    try:
        ledger.deliver(job.admits())
    finally:
        ledger.close()


def link_or_copy(source: Path, target: Path) -> None:
    """Hard-link a file, or copy it where the file system cannot link."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)

"""Run a crawl in its own process, and take a snapshot of its store."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock

from llm_core.data.web.frontier import Frontier
from llm_core.data.web.job import CrawlJob
from llm_core.data.web.warc import recover

GRACE_SECONDS = 60.0
PAGES = pa.schema(
    [(name, pa.string()) for name in ("url", "group", "digest", "content_type", "segment", "fetched", "etag")]
    + [(name, pa.string()) for name in ("last_modified", "robots", "licence")]
    + [(name, pa.int64()) for name in ("status", "bytes", "offset")]
)


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


def snapshot(job: CrawlJob, out: Path, *, licence: str, group_of: Callable[[str], str] | None = None) -> int:
    """Hard-link the store's segments into `out`/warc and list its pages in `out`/pages.parquet; returns their number.

    Pages that an earlier job fetched and this one would not are left out.
    `group_of(url)` names what must not be divided between training and validation; None leaves it to the document.
    """
    store, admits = Path(job.store), job.admits()
    (out / "warc").mkdir(parents=True)
    recover(store / "warc")
    frontier = Frontier(store / "frontier.sqlite", max_pages=1)
    rows = [
        {**page, "licence": licence, "group": group_of(page["url"]) if group_of else None}
        for page in frontier.stored_pages()
        if admits(page["url"])
    ]
    frontier.close()
    for segment in sorted({row["segment"] for row in rows}):
        link_or_copy(store / "warc" / segment, out / "warc" / segment)
    pq.write_table(pa.Table.from_pylist(rows, schema=PAGES), out / "pages.parquet", compression="zstd")
    return len(rows)


def link_or_copy(source: Path, target: Path) -> None:
    """Hard-link a file, or copy it where the file system cannot link."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)

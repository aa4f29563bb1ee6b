"""`kill -9` at random moments: nothing is lost, little is fetched twice, nothing stands twice in the table."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fastwarc import ArchiveIterator as FastArchiveIterator
from warcio.archiveiterator import ArchiveIterator

from llm_core.data.web.job import CrawlJob


def kill_after(job_file: Path, stored: int, pause: float) -> bool:
    """Start the crawl, kill it some time after it stored so many pages more; False if it ended before."""
    command = [sys.executable, "-m", "llm_core.data.web.crawl", str(job_file)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert child.stdout is not None
    for line in child.stdout:
        if json.loads(line)["fetched"] >= stored:
            break
    try:
        child.wait(pause)
    except subprocess.TimeoutExpired:
        child.kill()
    child.communicate()
    return child.returncode == -signal.SIGKILL


def records(folder: Path) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    """(URL, bytes) of every response, as warcio and as fastwarc read them."""
    slow: list[tuple[str, int]] = []
    fast: list[tuple[str, int]] = []
    for path in sorted(folder.glob("*.warc.gz")):
        with open(path, "rb") as file:
            for record in ArchiveIterator(file):
                if record.rec_type == "response":
                    slow.append((record.rec_headers["WARC-Target-URI"], len(record.content_stream().read())))
        with open(path, "rb") as file:
            for fast_record in FastArchiveIterator(file, parse_http=True):
                if fast_record.headers["WARC-Type"] == "response":
                    fast.append((fast_record.headers["WARC-Target-URI"], len(fast_record.reader.read())))
    return slow, fast


def killed_crawl(
    site: Any, job: CrawlJob, crawls: Any, folder: Path, *, pages: int, kills: int, seed: int
) -> dict[str, int]:
    """Crawl a site with kills at random moments, check everything, and tell how often pages were fetched twice."""
    site.many(pages, size=50)
    site.delay = 0.004
    job = replace(job, max_pages=2 * pages)
    Path(job.store).mkdir()
    job.write(folder / "job.json")
    chance = random.Random(seed)
    done = 0
    for _ in range(kills):
        done += kill_after(folder / "job.json", chance.randrange(1, pages // (2 * kills)), chance.random() * 0.1)
    assert done == kills, "each of them was killed while it worked"
    assert crawls.go(job) == {"stored": pages + 1}
    rows = crawls.table(job, folder / "out")
    assert len({row["url"] for row in rows}) == len(rows) == pages + 1
    slow, fast = records(folder / "out" / "warc")
    assert slow == fast
    assert {url for url, _ in slow} == {row["url"] for row in rows}
    for row in rows:
        with open(folder / "out" / "warc" / row["segment"], "rb") as file:
            file.seek(row["offset"])
            record = next(iter(ArchiveIterator(file)))
            assert record.rec_headers["WARC-Target-URI"] == row["url"]
            assert len(record.content_stream().read()) == row["bytes"]
    twice = sum(asked - 1 for path, asked in site.asked.items() if path != "/robots.txt")
    return {
        "kills": kills,
        "asked_twice": twice,
        "records_twice": len(slow) - len(rows),
        "bound": kills * in_flight(job),
    }


def in_flight(job: CrawlJob) -> int:
    """Requests that can be under way at one moment, as the frontier hands them out."""
    return min(job.budgets.in_all, job.concurrency)


def test_three_kills(site: Any, job: CrawlJob, crawls: Any, tmp_path: Path) -> None:
    figures = killed_crawl(site, job, crawls, tmp_path, pages=400, kills=3, seed=1)
    assert figures["asked_twice"] <= figures["bound"], figures
    assert figures["records_twice"] <= figures["kills"], figures


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_ten_kills_in_three_thousand_pages(site: Any, job: CrawlJob, crawls: Any, tmp_path: Path) -> None:
    figures = killed_crawl(site, job, crawls, tmp_path, pages=3_000, kills=10, seed=2)
    print(figures)
    assert figures["asked_twice"] <= figures["bound"], figures
    assert figures["records_twice"] <= figures["kills"], figures


def test_one_request_at_a_time_is_fetched_at_most_once_more(
    site: Any, job: CrawlJob, crawls: Any, tmp_path: Path
) -> None:
    alone = replace(job, concurrency=1, total_concurrency=1)
    figures = killed_crawl(site, alone, crawls, tmp_path, pages=60, kills=2, seed=3)
    assert figures["asked_twice"] <= 2

"""The crawl against a server of the test: politeness, limits, kills, refresh."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from warcio.archiveiterator import ArchiveIterator

from llm_core.contract import BadInput, Progress, Stop
from llm_core.data import acquire
from llm_core.data.web.job import CrawlJob
from llm_core.data.web.store import crawl, snapshot
from llm_core.settings.acquire import AcquireConfig, WebSource


class Site:
    """A web site whose answers the test sets: path -> (status, headers, body). It counts what was asked for."""

    def __init__(self) -> None:
        self.answers: dict[str, tuple[int, dict[str, str], bytes]] = {}
        self.asked: Counter[str] = Counter()
        self.agents: set[str] = set()
        self.times: list[float] = []
        self.delay = 0.0
        site = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                site.asked[self.path] += 1
                site.agents.add(self.headers["User-Agent"])
                if self.path != "/robots.txt":
                    site.times.append(time.monotonic())
                    time.sleep(site.delay)
                status, headers, body = site.answers.get(self.path, (404, {}, b"no"))
                if headers.get("ETag") and self.headers.get("If-None-Match") == headers["ETag"]:
                    status, body = 304, b""
                self.send_response(status)
                for name, value in {"Content-Type": "text/html", **headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def page(self, path: str, *links: str, text: str = "text", **headers: str) -> None:
        body = f"<html><body><p>{text}</p>{''.join(f'<a href={link!r}>x</a>' for link in links)}</body></html>"
        self.answers[path] = (200, headers, body.encode())


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    thread = threading.Thread(target=site.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield site
    site.server.shutdown()
    site.server.server_close()
    thread.join()


@pytest.fixture
def job(site: Site, tmp_path: Path) -> CrawlJob:
    return CrawlJob(
        store=str(tmp_path / "store"), start=(f"{site.url}/",), contact="test@example.org", delay=0.0, concurrency=8,
        allow_private=("127.0.0.1",),
    )  # fmt: skip


def go(job: CrawlJob, tmp_path: Path) -> dict[str, int]:
    outcomes: dict[str, int] = list(crawl(job, tmp_path))[-1]["outcomes"]
    return outcomes


def table(job: CrawlJob, folder: Path) -> list[dict[str, Any]]:
    snapshot(job, folder, source="site", licence="CC0-1.0")
    return pq.read_table(folder / "pages.parquet").to_pylist()


def test_what_is_fetched_and_what_is_not(site: Site, job: CrawlJob, tmp_path: Path) -> None:
    site.answers["/robots.txt"] = (200, {}, b"User-agent: *\nDisallow: /closed/")
    site.page(
        "/", "/a#part", "/a", "/b?utm_source=x", "/closed/x", "/photo", "/moved", "http://example.org/", "/deep/1"
    )
    site.page("/a", "/"), site.page("/b"), site.page("/closed/x"), site.page("/target")
    site.page("/deep/1", "/deep/2"), site.page("/deep/2", "/deep/3"), site.page("/deep/3")
    site.answers["/photo"] = (200, {"Content-Type": "image/png"}, b"\x89PNG" + b"0" * 100)
    site.answers["/moved"] = (302, {"Location": "/target"}, b"")
    site.answers["/b"] = (200, {"Content-Type": "text/html", "Set-Cookie": "a=b"}, b"<p>b</p>" * 50)
    outcomes = go(replace(job, depth=2), tmp_path)
    stored = {row["url"].removeprefix(site.url): row for row in table(job, tmp_path / "out")}
    assert sorted(stored) == ["/", "/a", "/b", "/deep/1", "/deep/2", "/target"]
    assert outcomes == {"stored": 6, "robots": 1, "type": 1, "redirect": 1}
    assert site.asked["/closed/x"] == 0
    assert max(site.asked.values()) == 1
    assert site.agents == {"groundup/0.1 (+test@example.org)"}


@pytest.mark.parametrize("status", [500, 503, 404])
def test_robots_that_cannot_be_had(site: Site, job: CrawlJob, tmp_path: Path, status: int) -> None:
    site.answers["/robots.txt"] = (status, {}, b"")
    site.page("/")
    assert go(job, tmp_path) == ({"stored": 1} if status == 404 else {"robots": 1})


def test_crawl_delay_is_applied(site: Site, job: CrawlJob, tmp_path: Path) -> None:
    site.answers["/robots.txt"] = (200, {}, b"User-agent: *\nCrawl-delay: 0.6")
    site.page("/", "/a", "/b")
    site.page("/a"), site.page("/b")
    go(job, tmp_path)
    assert len(site.times) == 3
    assert min(b - a for a, b in zip(site.times, site.times[1:], strict=False)) > 0.25  # Scrapy varies a delay by half


def test_budgets_patterns_and_body_cap(site: Site, job: CrawlJob, tmp_path: Path) -> None:
    site.page("/", *(f"/page/{i}" for i in range(30)), "/other/1", "/page/skip")
    for i in range(30):
        site.page(f"/page/{i}")
    site.page("/other/1"), site.page("/page/skip"), site.page("/page/0", text="x" * 50_000)
    limited = replace(job, max_pages=9, allow=("/page/",), deny=("skip",), max_bytes=20_000)
    outcomes = go(limited, tmp_path)
    assert outcomes["stored"] == 9
    assert outcomes["error DownloadCancelledError"] == 1
    assert site.asked["/other/1"] == site.asked["/page/skip"] == 0
    assert go(replace(limited, max_pages=12), tmp_path)["stored"] == 12, "a larger budget goes on"
    narrower = replace(limited, deny=("skip", "/page/1$"))
    assert len(table(narrower, tmp_path / "out")) == 11, "what a later job denies is left out of the snapshot"


def big_site(site: Site, count: int) -> None:
    site.page("/", *(f"/{i}" for i in range(20)))
    for i in range(count):
        site.page(f"/{i}", *(f"/{k}" for k in range(i * 3, min(count, i * 3 + 3))), text=f"page {i} " * 200)


def test_kill_loses_nothing(site: Site, job: CrawlJob, tmp_path: Path) -> None:
    count = 240
    big_site(site, count)
    site.delay = 0.01
    Path(job.store).mkdir()
    job.write(tmp_path / "job.json")
    for stored in (40, 120):
        command = [sys.executable, "-m", "llm_core.data.web.crawl", str(tmp_path / "job.json")]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert child.stdout is not None
        for line in child.stdout:
            if json.loads(line)["stored"] >= stored:
                break
        child.kill()
        child.communicate()
        assert child.returncode == -signal.SIGKILL
    assert go(job, tmp_path) == {"stored": count + 1}
    rows = table(job, tmp_path / "out")
    assert len({row["url"] for row in rows}) == len(rows) == count + 1
    twice = sum(asked - 1 for path, asked in site.asked.items() if path != "/robots.txt")
    assert twice <= 2 * (50 + 16), "at most what was not committed and what was in flight"
    for row in rows:
        with open(tmp_path / "out" / "warc" / row["segment"], "rb") as file:
            file.seek(row["offset"])
            record = next(iter(ArchiveIterator(file)))
            assert record.rec_headers["WARC-Target-URI"] == row["url"]
            assert len(record.content_stream().read()) == row["bytes"]


def test_one_sigterm_ends_it_cleanly(site: Site, job: CrawlJob, tmp_path: Path) -> None:
    big_site(site, 240)
    site.delay = 0.02
    lines = crawl(job, tmp_path)
    for line in lines:
        if line["stored"] >= 30:
            break
    lines.close()
    before = sum(site.asked.values())
    assert before < 240
    assert not list(Path(job.store).rglob("*.open"))
    site.delay = 0.0
    assert go(job, tmp_path) == {"stored": 241}
    assert max(asked for path, asked in site.asked.items() if path != "/robots.txt") == 1


def test_refresh(site: Site, job: CrawlJob, tmp_path: Path) -> None:
    site.page("/", "/same", "/tagged", "/changes", "/goes")
    site.page("/same"), site.page("/changes", text="old"), site.page("/goes")
    site.page("/tagged", **{"ETag": '"1"'})
    go(job, tmp_path)
    before = {row["url"]: row for row in table(job, tmp_path / "before")}
    go(replace(job, refresh=True), tmp_path)
    assert {row["url"]: row for row in table(job, tmp_path / "again")} == before, "nothing new: nothing differs"
    assert len(list(Path(job.store, "warc").iterdir())) == 1
    site.page("/changes", "/new", text="new"), site.page("/new")
    del site.answers["/goes"]
    go(replace(job, refresh=True), tmp_path)
    after = {row["url"]: row for row in table(job, tmp_path / "after")}
    assert set(after) - set(before) == {f"{site.url}/new"}
    assert set(before) - set(after) == {f"{site.url}/goes"}
    changed = {url for url in before if url in after and before[url]["digest"] != after[url]["digest"]}
    assert changed == {f"{site.url}/changes"}


def test_acquire_of_a_web_source(site: Site, tmp_path: Path) -> None:
    site.page("/", "/a"), site.page("/a")
    source = WebSource(kind="web", name="site", start=(f"{site.url}/",), contact="x@example.org", delay_seconds=0, allow_private=("127.0.0.1",))
    config = AcquireConfig(sources=(source,), store=tmp_path / "store")
    events: list[Any] = []
    report = acquire.run(config, out=tmp_path / "raw", scratch=tmp_path, emit=events.append)
    assert report.metrics["pages"] == 2
    assert any(isinstance(event, Progress) and event.unit == "pages" for event in events)
    inodes = {os.stat(path).st_ino for path in (tmp_path / "store").rglob("*.warc.gz")}
    assert {os.stat(path).st_ino for path in (tmp_path / "raw").rglob("*.warc.gz")} == inodes, "a hard link, no copy"


def test_a_stop_ends_the_crawl_and_leaves_no_product(site: Site, tmp_path: Path) -> None:
    big_site(site, 240)
    site.delay = 0.02
    source = WebSource(kind="web", name="site", start=(f"{site.url}/",), contact="x@example.org", delay_seconds=0, allow_private=("127.0.0.1",))

    def emit(event: Any) -> None:
        if isinstance(event, Progress) and event.done >= 10:
            raise Stop

    with pytest.raises(Stop):
        acquire.run(
            AcquireConfig(sources=(source,), store=tmp_path / "s"), out=tmp_path / "raw", scratch=tmp_path, emit=emit
        )
    assert not (tmp_path / "raw").exists()
    assert sum(site.asked.values()) < 240


def test_a_site_that_cannot_be_reached_is_bad_input(tmp_path: Path) -> None:
    source = WebSource(kind="web", name="none", start=("http://127.0.0.1:9/",), contact="x@example.org")
    with pytest.raises(BadInput, match="'none' gave nothing"):
        acquire.run(
            AcquireConfig(sources=(source,), store=tmp_path / "s"),
            out=tmp_path / "raw",
            scratch=tmp_path,
            emit=lambda _: None,
        )

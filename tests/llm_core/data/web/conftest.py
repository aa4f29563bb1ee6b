"""A web site of the test's own on loopback, and helpers to crawl it."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from llm_core.data.web.job import CrawlJob
from llm_core.data.web.store import crawl, snapshot


class Site:
    """A web site whose answers the test sets: path -> (status, headers, body). It counts what was asked for.

    `scripts` maps a path to a function that gets the request handler and answers as it likes, also by breaking HTTP.
    """

    def __init__(self) -> None:
        self.answers: dict[str, tuple[int, dict[str, str], bytes]] = {}
        self.scripts: dict[str, Callable[[Any], None]] = {}
        self.asked: Counter[str] = Counter()
        self.agents: set[str] = set()
        self.times: dict[str, list[float]] = {}
        self.conditional: set[str] = set()
        self.delay = 0.0
        site = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                site.asked[self.path] += 1
                site.agents.add(self.headers["User-Agent"])
                site.times.setdefault(self.path, []).append(time.monotonic())
                if self.headers.get("If-None-Match") or self.headers.get("If-Modified-Since"):
                    site.conditional.add(self.path)
                if script := site.script_for(self.path):
                    script(self)
                    return
                if self.path != "/robots.txt":
                    time.sleep(site.delay)
                status, headers, body = site.answers.get(self.path, (404, {}, b"no"))
                if headers.get("ETag") and self.headers.get("If-None-Match") == headers["ETag"]:
                    status, body = 304, b""
                self.answer(status, headers, body)

            def answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
                self.send_response(status)
                for name, value in {"Content-Type": "text/html", **headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None: ...

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 64

            def handle_error(self, *_: Any) -> None:
                """Clients that hang up are what these tests are about."""

        self.server = Server(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def script_for(self, path: str) -> Callable[[Any], None] | None:
        """The script of a path, or of a folder above it (its name ends with a slash)."""
        found = [
            name
            for name in self.scripts
            if path == name or (name.endswith("/") and name != "/" and path.startswith(name))
        ]
        return self.scripts[max(found, key=len)] if found else None

    def page(self, path: str, *links: str, text: str = "text", head: str = "", **headers: str) -> None:
        """An HTML page with links."""
        anchors = "".join(f"<a href={link!r}>x</a>" for link in links)
        body = f"<html><head>{head}</head><body><p>{text}</p>{anchors}</body></html>"
        self.answers[path] = (200, {name.replace("_", "-"): value for name, value in headers.items()}, body.encode())

    def many(self, count: int, size: int = 200) -> None:
        """A site of `count` pages below the front page, each of which links to three others."""
        self.page("/", *(f"/{i}" for i in range(20)))
        for i in range(count):
            self.page(f"/{i}", *(f"/{k}" for k in range(i * 3, min(count, i * 3 + 3))), text=f"page {i} " * size)


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
        store=str(tmp_path / "store"),
        start=(f"{site.url}/",),
        contact="test@example.org",
        delay=0.0,
        concurrency=8,
        allow_private=("127.0.0.1",),
    )


class Crawls:
    """Runs crawls for a test."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch

    def last(self, job: CrawlJob) -> dict[str, Any]:
        """The last line of a crawl."""
        line: dict[str, Any] = list(crawl(job, self.scratch))[-1]
        assert line["reason"] == "finished"
        return line

    def go(self, job: CrawlJob) -> dict[str, int]:
        """URLs by outcome."""
        outcomes: dict[str, int] = self.last(job)["outcomes"]
        return outcomes

    def examples(self, job: CrawlJob) -> dict[str, dict[str, Any]]:
        """The rows of the report by outcome."""
        return {row["outcome"]: row for row in self.last(job)["examples"]}

    def table(self, job: CrawlJob, folder: Path) -> list[dict[str, Any]]:
        """The pages of a snapshot."""
        snapshot(job, folder, source="site", licence="CC0-1.0")
        rows: list[dict[str, Any]] = pq.read_table(folder / "pages.parquet").to_pylist()
        return rows


@pytest.fixture
def crawls(tmp_path: Path) -> Crawls:
    return Crawls(tmp_path)

"""The crawl, a program of its own: `python -m llm_core.data.web.crawl JOB.json`.

Scrapy is the engine (connections, limits, redirects, server quirks); the frontier, the WARC files, the treatment of
robots.txt and the canonical URLs are ours. It runs in its own process because Twisted's reactor cannot be started
twice. Each line of standard output is a JSON object with the counts so far; the last one has "reason". One SIGTERM
ends it cleanly.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import xxhash
from scrapy import Request, Spider, signals
from scrapy.crawler import Crawler, CrawlerProcess
from scrapy.exceptions import IgnoreRequest, StopDownload
from scrapy.http import Response
from twisted.internet.task import LoopingCall

from llm_core.data.web.frontier import Frontier
from llm_core.data.web.job import AGENT, CrawlJob
from llm_core.data.web.urls import canonical, links
from llm_core.data.web.warc import SegmentWriter, header_pairs

COMMIT_PAGES, COMMIT_SECONDS = 50, 1.0
TEXT_TYPES = ("text/html", "application/xhtml+xml", "text/plain", "text/markdown", "application/xml", "text/xml")
GONE = (404, 410)


class CrawlSpider(Spider):  # type: ignore[misc]
    """Stores what arrives and adds its links to the frontier."""

    name = AGENT

    def __init__(self, job: CrawlJob, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.job = job
        folder = Path(job.store)
        starts = [url for url in map(canonical, job.start) if url]
        self.admits = job.admits()
        self.frontier = Frontier(
            folder / "frontier.sqlite", max_pages=job.max_pages, max_pages_per_host=job.max_pages_per_host
        )
        self.segments = SegmentWriter(folder / "warc", job.user_agent)
        if job.refresh:
            self.frontier.ask_again()
        for url in starts:
            self.frontier.add(url, 0)
        self._uncommitted, self._committed_at = 0, time.monotonic()
        self.fetched, self.fetched_bytes = 0, 0

    @classmethod
    def from_crawler(cls, crawler: Crawler, *args: Any, **kwargs: Any) -> CrawlSpider:
        spider: CrawlSpider = super().from_crawler(crawler, *args, **kwargs)
        crawler.signals.connect(spider.look_at_headers, signal=signals.headers_received)
        crawler.signals.connect(spider.finished, signal=signals.spider_closed)
        crawler.signals.connect(spider.begin, signal=signals.spider_opened)
        return spider

    def begin(self) -> None:
        """Commit and tell every second, also while nothing arrives."""
        self._heartbeat = LoopingCall(self._commit)
        self._heartbeat.start(COMMIT_SECONDS, now=False)

    async def start(self) -> AsyncIterator[Any]:
        """Nothing: the scheduler hands out what waits in the frontier."""
        return
        yield

    def look_at_headers(self, headers: Any, request: Request) -> None:
        """Stop a download whose headers name another type than text."""
        content_type = (headers.get("Content-Type") or b"text/html").decode("latin-1").partition(";")[0].strip().lower()
        if content_type not in TEXT_TYPES and "frontier_url" in request.meta:
            raise StopDownload(fail=True)

    def parse(self, response: Response) -> None:
        """Store a page and its links; a page whose bytes are known already is not written again."""
        url, depth = response.meta["frontier_url"], response.meta["depth"]
        if response.status == 304:
            self.frontier.finish(url, "stored")
        elif response.status != 200:
            known = self.frontier.known_digest(url) is not None
            outcome = "gone" if known and response.status in GONE else f"status {response.status}"
            self.frontier.finish(url, outcome, {"status": response.status})
        else:
            self._store(url, response)
            if depth < self.job.depth and "html" in self._content_type(response):
                encoding = getattr(response, "encoding", "utf-8")
                for link in links(response.body, response.url, encoding):
                    if self.admits(link):
                        self.frontier.add(link, depth + 1)
        self._settle()

    @staticmethod
    def _content_type(response: Response) -> str:
        return (response.headers.get("Content-Type") or b"text/html").decode("latin-1")

    def _store(self, url: str, response: Response) -> None:
        values: dict[str, Any] = {"status": 200, "etag": _header(response, "ETag")}
        values["last_modified"] = _header(response, "Last-Modified")
        digest = xxhash.xxh3_128_hexdigest(response.body)
        if self.frontier.known_digest(url) != digest:
            date = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            pairs = header_pairs(response.headers)
            segment, offset = self.segments.write(url, "200 OK", pairs, response.body, date)
            values |= {"segment": segment, "offset": offset, "digest": digest, "bytes": len(response.body)}
            values |= {"content_type": self._content_type(response), "fetched": date}
            values["robots"] = _header(response, "X-Robots-Tag")
        self.frontier.finish(url, "stored", values)
        self.fetched += 1
        self.fetched_bytes += len(response.body)

    def failed(self, failure: Any) -> None:
        """Mark a page that could not be had, with the reason."""
        url = failure.request.meta["frontier_url"]
        if failure.check(StopDownload):
            outcome = "type"
        elif failure.check(IgnoreRequest):
            outcome = "robots"
        else:
            outcome = f"error {failure.type.__name__}"
        self.frontier.finish(url, outcome)
        self._settle()

    def _settle(self) -> None:
        self._uncommitted += 1
        if self._uncommitted >= COMMIT_PAGES or time.monotonic() - self._committed_at > COMMIT_SECONDS:
            self._commit()

    def _commit(self) -> None:
        self.segments.flush()
        self.frontier.commit()
        self._uncommitted, self._committed_at = 0, time.monotonic()
        self.tell()

    def tell(self, **more: Any) -> None:
        """One line of JSON for whoever started the crawl; if nobody reads any more, the crawl ends."""
        waiting, stored = self.frontier.waiting.total(), self.frontier.stored.total()
        line = {"fetched": self.fetched, "bytes": self.fetched_bytes, "stored": stored, "waiting": waiting, **more}
        try:
            print(json.dumps(line), flush=True)
        except BrokenPipeError:
            sys.stdout = sys.stderr
            os.kill(os.getpid(), signal.SIGTERM)

    def finished(self, reason: str) -> None:
        """Close the segment, then the frontier, and say how it ended."""
        self._heartbeat.stop()
        self.segments.close()
        self.frontier.commit()
        self.tell(reason=reason, outcomes=self.frontier.outcomes())
        self.frontier.close()


def _header(response: Response, name: str) -> str | None:
    value = response.headers.get(name)
    return value.decode("latin-1") if value else None


def settings(job: CrawlJob) -> dict[str, Any]:
    """Scrapy's settings for a job; what is not named here keeps Scrapy's default."""
    unused = {
        f"scrapy.{module}": None
        for module in (
            "downloadermiddlewares.robotstxt.RobotsTxtMiddleware",
            "downloadermiddlewares.cookies.CookiesMiddleware",
            "downloadermiddlewares.httpproxy.HttpProxyMiddleware",
            "downloadermiddlewares.offsite.OffsiteMiddleware",
            "downloadermiddlewares.redirect.MetaRefreshMiddleware",
        )
    }
    web = "llm_core.data.web.scheduler"
    return {
        "ROBOTSTXT_OBEY": True,
        "ROBOTSTXT_USER_AGENT": AGENT,
        "USER_AGENT": job.user_agent,
        "SCHEDULER": f"{web}.FrontierScheduler",
        "DOWNLOADER_MIDDLEWARES": {**unused, f"{web}.ProxyMiddleware": 50, f"{web}.PoliteRobots": 100},
        "SPIDER_MIDDLEWARES_BASE": {"scrapy.spidermiddlewares.referer.RefererMiddleware": 700},
        "CONCURRENT_REQUESTS": max(16, job.concurrency),
        "CONCURRENT_REQUESTS_PER_DOMAIN": job.concurrency,
        "DOWNLOAD_DELAY": job.delay,
        "DOWNLOAD_TIMEOUT": job.timeout,
        "DOWNLOAD_MAXSIZE": job.max_bytes,
        "DOWNLOAD_WARNSIZE": 0,
        "RETRY_TIMES": 2,
        "REDIRECT_MAX_TIMES": 5,
        "COOKIES_ENABLED": False,
        "TELNETCONSOLE_ENABLED": False,
        "LOG_LEVEL": "WARNING",
    }


def main() -> None:
    """Run the job named on the command line."""
    job = CrawlJob.read(Path(sys.argv[1]))
    logging.getLogger("scrapy").setLevel(logging.WARNING)
    process = CrawlerProcess(settings(job))
    process.crawl(CrawlSpider, job=job)
    process.start()


if __name__ == "__main__":
    main()

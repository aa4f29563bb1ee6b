"""Scrapy's scheduler interface over the frontier, and the middleware that applies robots.txt as RFC 9309 says."""

from __future__ import annotations

from typing import Any

from scrapy import Request, Spider
from scrapy.core.scheduler import BaseScheduler
from scrapy.crawler import Crawler
from scrapy.downloadermiddlewares.robotstxt import RobotsTxtMiddleware
from scrapy.http import Response
from scrapy.utils.misc import build_from_crawler

from llm_core.data.web.frontier import Entry, Frontier
from llm_core.data.web.urls import canonical

NOTHING_ALLOWED = b"User-agent: *\nDisallow: /"


class FrontierScheduler(BaseScheduler):  # type: ignore[misc]
    """Hands out what waits in the frontier. Redirects become links of their own; retries go back to the frontier."""

    def __init__(self, crawler: Crawler) -> None:
        self._crawler = crawler

    @classmethod
    def from_crawler(cls, crawler: Crawler) -> FrontierScheduler:
        return cls(crawler)

    def open(self, spider: Spider) -> None:
        self._spider: Any = spider
        self._frontier: Frontier = spider.frontier

    def has_pending_requests(self) -> bool:
        return self._frontier.pending()

    def enqueue_request(self, request: Request) -> bool:
        """Called for a retry or a redirect of a page in flight; new links go straight into the frontier."""
        source: str = request.meta["frontier_url"]
        target = canonical(request.url)
        if not request.meta.get("redirect_urls"):
            self._frontier.retry(source)
            return True
        self._frontier.finish(source, "redirect loop" if target == source else "redirect")
        if target is not None and self._spider.admits(target):
            return self._frontier.add(target, request.meta["depth"])
        return False

    def next_request(self) -> Request | None:
        while entry := self._frontier.take():
            if self._spider.admits(entry.url):
                return self._request(entry)
            self._frontier.finish(entry.url, "denied")
        return None

    def _request(self, entry: Entry) -> Request:
        headers = {}
        if self._spider.job.refresh:
            headers = {"If-None-Match": entry.etag, "If-Modified-Since": entry.last_modified}
        return Request(
            entry.url,
            headers={name: value for name, value in headers.items() if value},
            meta={"frontier_url": entry.url, "depth": entry.depth, "retry_times": entry.tries},
            errback=self._spider.failed,
            dont_filter=True,
        )


class ProxyMiddleware:
    """Sends every request, that for robots.txt too, through the job's proxy; it comes before the robots middleware."""

    def __init__(self, crawler: Crawler) -> None:
        self._crawler = crawler

    @classmethod
    def from_crawler(cls, crawler: Crawler) -> ProxyMiddleware:
        return cls(crawler)

    def process_request(self, request: Request) -> None:
        spider: Any = self._crawler.spider
        if spider.job.proxy:
            request.meta["proxy"] = spider.job.proxy


class PoliteRobots(RobotsTxtMiddleware):  # type: ignore[misc]
    """RFC 9309: no robots.txt (4xx) allows everything, a server error or silence allows nothing.

    Scrapy's own middleware allows everything when robots.txt cannot be had, and never applies Crawl-delay.
    """

    async def _parse_robots(self, response: Response, netloc: str, request: Request) -> None:
        if response.status >= 500 or response.status == 429:
            response = response.replace(status=200, body=NOTHING_ALLOWED)
        elif response.status >= 400:
            response = response.replace(status=200, body=b"")
        await super()._parse_robots(response, netloc, request)
        parser = self._parsers[netloc]
        delay = parser.crawl_delay(self._robotstxt_useragent) if parser is not None else None
        if delay:
            self._slow_down(request, delay)

    def _robots_error(self, exc: Exception, netloc: str) -> None:  # noqa: ARG002
        waiting = self._parsers[netloc]
        parser = build_from_crawler(self._parserimpl, self.crawler, NOTHING_ALLOWED)
        self._parsers[netloc] = parser
        waiting.callback(parser)

    def _slow_down(self, request: Request, delay: float) -> None:
        downloader = self.crawler.engine.downloader
        key, slot = downloader._get_slot(request)
        slot.delay = max(slot.delay, delay)
        slot.concurrency = 1
        downloader.per_slot_settings[key] = {"delay": slot.delay, "concurrency": 1}

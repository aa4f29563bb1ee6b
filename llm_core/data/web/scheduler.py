"""Scrapy's scheduler interface over the frontier."""

from __future__ import annotations

import time
from typing import Any

from scrapy import Request, Spider
from scrapy.core.scheduler import BaseScheduler
from scrapy.crawler import Crawler
from scrapy.utils.asyncio import call_later

from llm_core.data.web import outcomes
from llm_core.data.web.frontier import SITEMAP, Entry, Frontier
from llm_core.data.web.urls import canonical, host_of

MAX_HOPS = 5


class FrontierScheduler(BaseScheduler):  # type: ignore[misc]
    """Hands out what waits in the frontier. Redirects become links of their own; retries go back to the frontier."""

    def __init__(self, crawler: Crawler) -> None:
        self._crawler = crawler
        self._alarm: Any = None
        self._rings = 0.0

    @classmethod
    def from_crawler(cls, crawler: Crawler) -> FrontierScheduler:
        return cls(crawler)

    def open(self, spider: Spider) -> None:
        self._spider: Any = spider
        self._frontier: Frontier = spider.frontier

    def close(self, reason: str) -> None:  # noqa: ARG002
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None

    def has_pending_requests(self) -> bool:
        return self._frontier.pending()

    def enqueue_request(self, request: Request) -> bool:
        """Called for a retry or a redirect of a page in flight; new links go straight into the frontier."""
        source: str = request.meta["frontier_url"]
        if not request.meta.get("redirect_urls"):
            self._frontier.retry(source)
        else:
            outcome, target, why = self._judge(source, request)
            detail = why or f"to {request.url[:200]}"
            self._frontier.finish(source, outcome, {"target": target, "detail": detail})
            if outcome == outcomes.REDIRECT and target is not None:
                meta = request.meta
                self._frontier.add([target], meta["depth"], kind=meta["kind"], hops=meta["hops"] + 1)
        self._spider.settle()
        return True

    def _judge(self, source: str, request: Request) -> tuple[str, str | None, str | None]:
        """(outcome, canonical target, why in words) of a redirect."""
        target = canonical(request.url)
        if target is None:
            return outcomes.REDIRECT_OUT, None, None
        if why := self._spider.policy.refusal_of_literal(_name(target)):
            return outcomes.PRIVATE, target, why
        if self._frontier.leads_to(target, source):
            return outcomes.REDIRECT_LOOP, target, None
        if request.meta["hops"] >= MAX_HOPS:
            return outcomes.REDIRECTS, target, None
        sitemap = request.meta["kind"] == SITEMAP
        inside = host_of(target) in self._spider.scope.hosts if sitemap else self._spider.admits(target)
        return (outcomes.REDIRECT if inside else outcomes.REDIRECT_OUT), target, None

    def next_request(self) -> Request | None:
        wait = self._frontier.unblock()
        if wait is not None:
            self._set_alarm(max(0.0, wait) + 0.01)
        while entry := self._frontier.take():
            if entry.kind != SITEMAP and not self._spider.admits(entry.url):
                self._frontier.finish(entry.url, outcomes.DENIED)
            elif why := self._spider.policy.refusal_of_literal(_name(entry.url)):
                self._frontier.finish(entry.url, outcomes.PRIVATE, {"detail": why})
            else:
                return self._request(entry)
        return None

    def _set_alarm(self, seconds: float) -> None:
        at = time.monotonic() + seconds
        if self._alarm is None or at < self._rings:
            if self._alarm is not None:
                self._alarm.cancel()
            self._alarm, self._rings = call_later(seconds, self._wake), at

    def _wake(self) -> None:
        self._alarm = None
        if self._crawler.engine is not None and self._crawler.engine._slot is not None:
            self._crawler.engine._slot.nextcall.schedule()

    def _request(self, entry: Entry) -> Request:
        headers = {}
        if entry.known:
            headers = {"If-None-Match": entry.etag, "If-Modified-Since": entry.last_modified}
        meta = {
            "frontier_url": entry.url,
            "depth": entry.depth,
            "kind": entry.kind,
            "hops": entry.hops,
            "waits": entry.waits,
            "retry_times": entry.tries,
        }
        if entry.kind == SITEMAP:
            meta["download_maxsize"] = self._spider.sitemap_bytes
        return Request(
            entry.url,
            headers={name: value for name, value in headers.items() if value},
            meta=meta,
            errback=self._spider.failed,
            dont_filter=True,
        )


def _name(url: str) -> str:
    """The host of a URL without its port."""
    host = host_of(url)
    return host.partition("]")[0] + "]" if host.startswith("[") else host.partition(":")[0]

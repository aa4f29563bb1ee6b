"""Manners as Scrapy middlewares: robots.txt, Crawl-delay, Retry-After, and how fast a host is asked.

Scrapy's own robots middleware allows everything when robots.txt cannot be had and never applies Crawl-delay, its retry
middleware asks again after 50 ms whatever Retry-After says, and AutoThrottle would go below a Crawl-delay.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple
from urllib.parse import urljoin

from scrapy import Request, Spider, signals
from scrapy.crawler import Crawler
from scrapy.downloadermiddlewares.httpcompression import HttpCompressionMiddleware
from scrapy.downloadermiddlewares.retry import RetryMiddleware
from scrapy.exceptions import IgnoreRequest, StopDownload
from scrapy.extensions.throttle import AutoThrottle
from scrapy.http import Response
from scrapy.http.request import NO_CALLBACK
from scrapy.utils.asyncio import call_later

from llm_core.data.web import outcomes
from llm_core.data.web.job import AGENT
from llm_core.data.web.outcomes import Refusal, outcome_of
from llm_core.data.web.robots import LIMIT, Robots
from llm_core.data.web.urls import host_of

PATIENCE = 5
"""Times in a row that a host may put the crawl off before it is left for the next run."""
ROBOTS_SECONDS = 10.0
HOSTS_REMEMBERED = 2_000
OVERLOADED = (429, 503)


class PutOff(IgnoreRequest):  # type: ignore[misc]
    """A host answered 429 or 503: the URL is asked for again later."""

    def __init__(self, status: int) -> None:
        super().__init__(f"status {status}")
        self.status = status


def retry_after(value: str | None, now: datetime) -> float | None:
    """Seconds that a Retry-After header asks for, given in seconds or as an HTTP date; None if it says nothing."""
    if not value:
        return None
    value = value.strip()
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        date = parsedate_to_datetime(value)
    except ValueError:
        return None
    return max(0.0, (date.replace(tzinfo=date.tzinfo or UTC) - now).total_seconds())


class _OfCrawler:
    """A middleware that knows its crawler, and through it the spider with job and frontier."""

    def __init__(self, crawler: Crawler) -> None:
        self.crawler = crawler

    @classmethod
    def from_crawler(cls, crawler: Crawler) -> Any:
        return cls(crawler)

    @property
    def spider(self) -> Any:
        return self.crawler.spider


class ProxyMiddleware(_OfCrawler):
    """Sends every request, that for robots.txt too, through the job's proxy."""

    def process_request(self, request: Request) -> None:
        if self.spider.job.proxy:
            request.meta["proxy"] = self.spider.job.proxy


class _Rules(NamedTuple):
    """What robots.txt says, and the outcome of a URL that it forbids."""

    robots: Robots
    outcome: str


class RobotsMiddleware(_OfCrawler):
    """Asks each host for its robots.txt before anything else, and keeps to it (RFC 9309)."""

    def __init__(self, crawler: Crawler) -> None:
        super().__init__(crawler)
        self._rules: OrderedDict[str, asyncio.Task[_Rules]] = OrderedDict()
        crawler.signals.connect(self._cut, signal=signals.bytes_received)

    async def process_request(self, request: Request) -> None:
        if "robots_txt" in request.meta:
            return
        site = "/".join(request.url.split("/", 3)[:3])
        if site not in self._rules:
            self._rules[site] = asyncio.ensure_future(self._learn(site, request))
            if len(self._rules) > HOSTS_REMEMBERED:
                self._rules.popitem(last=False)
        task = self._rules[site]
        rules = task.result() if task.done() else await asyncio.shield(task)
        verdict = rules.robots.verdict(request.url)
        if not verdict.allowed:
            if rules.outcome == outcomes.POSTPONED:
                raise PutOff(503)
            raise Refusal(rules.outcome, verdict.rule)

    def _cut(self, data: bytes, request: Request) -> None:
        """Stop reading a robots.txt after 500 KiB: what came until then counts."""
        if "robots_txt" in request.meta:
            request.meta["robots_txt"] += len(data)
            if request.meta["robots_txt"] > LIMIT:
                raise StopDownload(fail=False)

    async def _learn(self, site: str, request: Request) -> _Rules:
        try:
            response = await self._ask(site)
        except Exception as error:
            why = self.spider.refused_address(site)
            if why:
                return _Rules(Robots.closed(why), outcomes.PRIVATE)
            if isinstance(error, IgnoreRequest) and "redirections" in str(error):
                return _Rules(Robots.from_answer(310, b"", AGENT), outcomes.ROBOTS)
            outcome, detail = outcome_of(error)
            return _Rules(Robots.closed(f"robots.txt cannot be had: {detail or outcome}"), outcomes.UNREACHABLE_ROBOTS)
        robots = Robots.from_answer(response.status, response.body, AGENT)
        if response.status in OVERLOADED:
            self.spider.frontier.postpone(host_of(request.url))
            return _Rules(Robots.closed(f"robots.txt answers {response.status}"), outcomes.POSTPONED)
        if response.status >= 500:
            return _Rules(robots, outcomes.UNREACHABLE_ROBOTS)
        longest = self.spider.job.max_crawl_delay
        if robots.delay and robots.delay > longest:
            why = f"Crawl-delay: {robots.delay:g} is longer than {longest:g} seconds"
            return _Rules(Robots.closed(why), outcomes.CRAWL_DELAY)
        if robots.delay:
            self._slow_down(request, robots.delay)
        self.spider.found_sitemaps(site, [urljoin(site + "/", url) for url in robots.sitemaps])
        return _Rules(robots, outcomes.ROBOTS)

    async def _ask(self, site: str) -> Response:
        """Fetch robots.txt; a server in trouble is asked three times, after the time it wants or one, two seconds."""
        for attempt in (1, 2, 3):
            seconds = min(ROBOTS_SECONDS, self.spider.job.timeout)
            meta = {"robots_txt": 0, "dont_retry": True, "download_timeout": seconds, "download_maxsize": 50_000_000}
            ask = Request(f"{site}/robots.txt", priority=1000, meta=meta, callback=NO_CALLBACK, dont_filter=True)
            response = await self.crawler.engine.download_async(ask)
            if attempt == 3 or not (response.status >= 500 or response.status == 429):
                break
            wait = retry_after(_header(response, "Retry-After"), datetime.now(UTC))
            if wait is not None and wait > self.spider.job.max_retry_after:
                break
            await asyncio.sleep(float(attempt) * 0.5 if wait is None else wait)
        return response

    def _slow_down(self, request: Request, delay: float) -> None:
        """Make a Crawl-delay the least distance between two requests to the host."""
        downloader = self.crawler.engine.downloader
        key, slot = downloader._get_slot(request)
        self.spider.floors[key] = delay
        slot.delay = max(slot.delay, delay)
        slot.concurrency = 1
        downloader.per_slot_settings[key] = {"delay": slot.delay, "concurrency": 1}


class PatienceMiddleware(_OfCrawler):
    """429 and 503: the host rests for the time it asks for, everybody else goes on, the URL is asked for again."""

    def __init__(self, crawler: Crawler) -> None:
        super().__init__(crawler)
        self._in_a_row: Counter[str] = Counter()

    def process_response(self, request: Request, response: Response) -> Response:
        if "frontier_url" not in request.meta:
            return response
        host = host_of(request.meta["frontier_url"])
        if response.status not in OVERLOADED:
            self._in_a_row.pop(host, None)
            return response
        frontier, longest = self.spider.frontier, self.spider.job.max_retry_after
        if not frontier.is_blocked(host):
            self._in_a_row[host] += 1
        wanted = retry_after(_header(response, "Retry-After"), datetime.now(UTC))
        if wanted is None:
            wanted = min(longest, max(1.0, self.spider.job.delay) * 2 ** (self._in_a_row[host] - 1))
        if wanted > longest or self._in_a_row[host] >= PATIENCE:
            frontier.postpone(host)
        else:
            frontier.block(host, wanted)
            self._hold(request, wanted)
        raise PutOff(response.status)

    def _hold(self, request: Request, seconds: float) -> None:
        """Let also those requests wait that are on their way to the host already."""
        downloader = self.crawler.engine.downloader
        slot = downloader.slots.get(request.meta.get(downloader.DOWNLOAD_SLOT))
        if slot is not None:
            if slot.latercall:
                slot.latercall.cancel()
            slot.latercall = call_later(seconds, downloader._latercall, slot)


class PoliteRetry(RetryMiddleware):  # type: ignore[misc]
    """Scrapy's retries, without those that cannot help."""

    def process_exception(self, request: Request, exception: Exception, spider: Spider | None = None) -> Any:  # noqa: ARG002
        if outcome_of(exception)[0] in (outcomes.HEADERS, outcomes.UNRESOLVABLE, outcomes.REFUSED):
            return None
        return super().process_exception(request, exception)


class SafeCompression(HttpCompressionMiddleware):  # type: ignore[misc]
    """Scrapy's decompression, which stops at the size limit; what went wrong gets a name."""

    def process_response(self, request: Request, response: Response, spider: Spider | None = None) -> Any:  # noqa: ARG002
        try:
            result = super().process_response(request, response)
        except IgnoreRequest as error:
            raise Refusal(outcomes.TOO_LARGE, "larger than max_bytes when decompressed") from error
        except Exception as error:
            raise Refusal(outcomes.BAD_ENCODING, str(error)[:200]) from error
        if isinstance(result, Response) and result.status == 200 and result.headers.get("Content-Encoding"):
            raise Refusal(outcomes.BAD_ENCODING, "Content-Encoding that nobody asked for")
        return result


class PoliteThrottle(AutoThrottle):  # type: ignore[misc]
    """Scrapy's AutoThrottle with the host's Crawl-delay as the floor."""

    def _response_downloaded(self, response: Response, request: Request, spider: Spider) -> None:
        super()._response_downloaded(response, request, spider)
        key, slot = self._get_slot(request, spider)
        if slot is not None:
            slot.delay = max(slot.delay, self.crawler.spider.floors.get(key, 0.0))


def _header(response: Response, name: str) -> str | None:
    value = response.headers.get(name)
    return value.decode("latin-1") if value else None

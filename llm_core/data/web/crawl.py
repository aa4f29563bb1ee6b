"""The crawl, a program of its own: `python -m llm_core.data.web.crawl JOB.json`.

Scrapy is the engine (connections, limits, redirects, server quirks); the frontier, the WARC files, the manners, the
address guard and the canonical URLs are ours. It runs in its own process because Twisted's reactor cannot be started
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
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import xxhash
from scrapy import Request, Spider, signals
from scrapy.crawler import Crawler, CrawlerProcess
from scrapy.exceptions import StopDownload
from scrapy.http import Response
from twisted.internet.task import LoopingCall

from llm_core.data.web import outcomes
from llm_core.data.web.addresses import AddressPolicy
from llm_core.data.web.frontier import SITEMAP, Frontier
from llm_core.data.web.guard import ALLOW_PRIVATE
from llm_core.data.web.job import AGENT, CrawlJob
from llm_core.data.web.ledger import Ledger
from llm_core.data.web.page import declared_encoding, header_directives, read_page, too_many_attributes
from llm_core.data.web.politeness import PATIENCE, PutOff
from llm_core.data.web.sitemaps import MAX_BYTES, MAX_NESTING, MAX_SITEMAPS, BadSitemap, read_sitemap
from llm_core.data.web.urls import canonical, host_of
from llm_core.data.web.warc import SegmentWriter, header_pairs

TELL_PAGES, TELL_SECONDS = 25, 1.0
DEAD_AFTER = 10
"""Requests in a row that may fail without an answer before a host is left for the next run."""
TEXT_TYPES = ("text/html", "application/xhtml+xml", "text/plain", "text/markdown", "application/xml", "text/xml")
NO_ANSWER = (outcomes.TIMEOUT, outcomes.REFUSED, outcomes.LOST, outcomes.UNRESOLVABLE)


class CrawlSpider(Spider):  # type: ignore[misc]
    """Stores what arrives and adds its links to the frontier. Every answer is committed before the next is read."""

    name = AGENT
    sitemap_bytes = MAX_BYTES

    def __init__(self, job: CrawlJob, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.job = job
        self.store = Path(job.store)
        self.scope, self.admits = job.scope(), job.admits()
        proxy = [job.proxy.split("/")[2].partition(":")[0]] if job.proxy else []
        self.policy = AddressPolicy([*job.allow_private, *proxy])
        self.frontier = Frontier(self.store / "frontier.sqlite", job.budgets)
        self.segments = SegmentWriter(self.store / "warc", job.user_agent)
        if job.refresh:
            self.frontier.begin_refresh()
        self.frontier.add(job.starts(), 0)
        self.frontier.commit()
        self.floors: dict[str, float] = {}
        self.fetched = self.fetched_bytes = self.answered = self._sitemaps = 0
        self._silent: Counter[str] = Counter()
        self._untold, self._told_at = 0, time.monotonic()

    @classmethod
    def from_crawler(cls, crawler: Crawler, *args: Any, **kwargs: Any) -> CrawlSpider:
        spider: CrawlSpider = super().from_crawler(crawler, *args, **kwargs)
        crawler.signals.connect(spider.look_at_headers, signal=signals.headers_received)
        crawler.signals.connect(spider.finished, signal=signals.spider_closed)
        crawler.signals.connect(spider.begin, signal=signals.spider_opened)
        return spider

    def begin(self) -> None:
        """Tell the counts every second, also while nothing arrives."""
        self._heartbeat = LoopingCall(self.tell)
        self._heartbeat.start(TELL_SECONDS, now=False)

    async def start(self) -> AsyncIterator[Any]:
        """Nothing: the scheduler hands out what waits in the frontier."""
        return
        yield

    def look_at_headers(self, headers: Any, request: Request) -> None:
        """Stop a download whose headers name another type than text."""
        if request.meta.get("kind") == 0 and _media_type(headers) not in TEXT_TYPES:
            raise StopDownload(fail=True)

    def parse(self, response: Response) -> None:
        """Store a page and its links; a page whose bytes are known already is not written again."""
        url = response.meta["frontier_url"]
        self._silent.pop(host_of(url), None)
        self.answered += 1
        if response.meta["kind"] == SITEMAP:
            self._sitemap(url, response)
        elif response.status == 304:
            self.frontier.finish(url, outcomes.STORED)
        elif response.status == 200:
            self._page(url, response)
        else:
            gone = response.status in (404, 410) and self.frontier.known_digest(url) is not None
            outcome = outcomes.GONE if gone else f"status {response.status}"
            self.frontier.finish(url, outcome, {"status": response.status})
        self.settle()

    def _page(self, url: str, response: Response) -> None:
        body, content_type = response.body, _header(response, "Content-Type") or ""
        directives = header_directives(_header_lines(response, "X-Robots-Tag"), AGENT)
        found: Iterable[str] = ()
        wrong = False
        if "html" in (content_type or "html"):
            if too_many_attributes(body):
                self.frontier.finish(url, outcomes.ATTRIBUTES)
                return
            encoding, wrong = declared_encoding(content_type, body)
            facts = read_page(body, response.url, encoding, AGENT)
            directives |= facts.directives
            found = facts.links
        values: dict[str, Any] = {"status": 200, "remark": "wrong_charset" if wrong else None}
        refused = next((name for name in self.job.respect if name != "nofollow" and name in directives), None)
        if refused is None:
            self._store(url, response, values, ", ".join(sorted(directives)) or None)
        else:
            self.frontier.finish(url, refused, {**values, "robots": ", ".join(sorted(directives))})
        if "nofollow" not in directives or "nofollow" not in self.job.respect:
            self.frontier.add([link for link in found if self.admits(link)], response.meta["depth"] + 1)

    def _store(self, url: str, response: Response, values: dict[str, Any], robots: str | None) -> None:
        etag, modified = _header(response, "ETag"), _header(response, "Last-Modified")
        digest = xxhash.xxh3_128_hexdigest(response.body)
        if self.frontier.known_digest(url) == digest:
            values |= {"asked_etag": etag, "asked_modified": modified}
        else:
            date = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            pairs = header_pairs(response.headers)
            segment, offset = self.segments.write(url, "200 OK", pairs, response.body, date)
            values |= {"segment": segment, "offset": offset, "digest": digest, "bytes": len(response.body)}
            values |= {"content_type": _header(response, "Content-Type") or "text/html", "fetched": date}
            values |= {"etag": etag, "last_modified": modified, "asked_etag": None, "asked_modified": None}
            values["robots"] = robots
        self.frontier.finish(url, outcomes.STORED, values)
        self.fetched += 1
        self.fetched_bytes += len(response.body)

    def _sitemap(self, url: str, response: Response) -> None:
        values: dict[str, Any] = {"status": response.status}
        if response.status not in (200, 304):
            self.frontier.finish(url, outcomes.BAD_SITEMAP, {**values, "detail": f"status {response.status}"})
            return
        try:
            found = read_sitemap(response.body) if response.status == 200 else read_sitemap(b"")
        except BadSitemap as error:
            self.frontier.finish(url, outcomes.BAD_SITEMAP, {**values, "detail": str(error)})
            return
        self.frontier.finish(url, outcomes.SITEMAP, {**values, "detail": f"{len(found.pages)} pages"})
        if self.job.depth > 0:
            self.frontier.add(filter(self.admits, found.pages), 1)
        if response.meta["hops"] < MAX_NESTING:
            self._add_sitemaps(found.sitemaps, response.meta["hops"] + 1)

    def found_sitemaps(self, site: str, urls: list[str]) -> None:
        """Let the sitemaps wait that a robots.txt names; where it names none, the usual place, if the job says so."""
        if self.job.sitemaps == "none" or self.job.depth == 0:
            return
        if not urls and self.job.sitemaps == "guess":
            urls = [f"{site}/sitemap.xml"]
        self._add_sitemaps([url for url in map(canonical, urls) if url], 0)

    def _add_sitemaps(self, urls: Iterable[str], hops: int) -> None:
        inside = [url for url in urls if host_of(url) in self.scope.hosts][: max(0, MAX_SITEMAPS - self._sitemaps)]
        self._sitemaps += self.frontier.add(inside, 0, kind=SITEMAP, hops=hops)
        self.frontier.commit()

    def failed(self, failure: Any) -> None:
        """Mark a page that could not be had, with the reason; one that its host put off is asked for again."""
        meta, error = failure.request.meta, failure.value
        url = meta["frontier_url"]
        host = host_of(url)
        if isinstance(error, PutOff) and meta["waits"] < PATIENCE:
            self.frontier.retry(url, waited=True)
        elif isinstance(error, PutOff):
            self.frontier.finish(url, f"status {error.status}", {"status": error.status})
        else:
            outcome, detail = outcomes.outcome_of(error)
            if outcome == outcomes.UNRESOLVABLE and (why := self.refused_address(url)):
                outcome, detail = outcomes.PRIVATE, why
            self.frontier.finish(url, outcome, {"detail": detail or None})
            self._silent[host] += outcome in NO_ANSWER
            if self._silent[host] >= DEAD_AFTER:
                self.frontier.postpone(host)
        self.settle()

    def refused_address(self, url: str) -> str | None:
        """Why the address guard let a URL's host have no address; None if it did not."""
        from twisted.internet import reactor

        refused: dict[str, str] = getattr(reactor.nameResolver, "refused", {})
        host = host_of(url) or url.split("/", 3)[2]
        return refused.get(host.partition("]")[0].strip("[") if host.startswith("[") else host.partition(":")[0])

    def settle(self) -> None:
        """Make durable what was just learned: the record first, then that it is there."""
        self.segments.flush()
        self.frontier.commit()
        self._untold += 1
        if self._untold >= TELL_PAGES or time.monotonic() - self._told_at > TELL_SECONDS:
            self.tell()

    def tell(self, **more: Any) -> None:
        """One line of JSON for whoever started the crawl; if nobody reads any more, the crawl ends."""
        self._untold, self._told_at = 0, time.monotonic()
        waiting, stored = self.frontier.waiting.total(), self.frontier.stored_in_all
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
        if reason == "finished":
            self.frontier.set_fact("refreshing", 0)
        self.frontier.commit()
        ledger = Ledger(self.store)
        rows, copies = ledger.outcomes(self.frontier.postponed()), ledger.copies()
        ledger.close()
        counts = {row["outcome"]: row["count"] for row in rows if ": " not in row["outcome"]}
        self.tell(reason=reason, answered=self.answered, copies=copies, outcomes=counts, examples=rows)
        self.frontier.close()


def _media_type(headers: Any) -> str:
    value: bytes = headers.get("Content-Type") or b"text/html"
    return value.decode("latin-1").partition(";")[0].strip().lower()


def _header(response: Response, name: str) -> str | None:
    value = response.headers.get(name)
    return value.decode("latin-1") if value else None


def _header_lines(response: Response, name: str) -> list[str]:
    return [value.decode("latin-1") for value in response.headers.getlist(name)]


def settings(job: CrawlJob) -> dict[str, Any]:
    """Scrapy's settings for a job; what is not named here keeps Scrapy's default."""
    scrapy = "scrapy.downloadermiddlewares"
    unused = (
        "robotstxt.RobotsTxtMiddleware", "cookies.CookiesMiddleware", "httpproxy.HttpProxyMiddleware",
        "offsite.OffsiteMiddleware", "redirect.MetaRefreshMiddleware", "retry.RetryMiddleware",
        "httpcompression.HttpCompressionMiddleware", "httpauth.HttpAuthMiddleware",
    )  # fmt: skip
    web = "llm_core.data.web"
    handler = f"{web}.guard.GuardedHandler"
    return {
        "USER_AGENT": job.user_agent,
        "SCHEDULER": f"{web}.scheduler.FrontierScheduler",
        "DOWNLOADER_MIDDLEWARES": {
            **{f"{scrapy}.{name}": None for name in unused},
            f"{web}.politeness.ProxyMiddleware": 50,
            f"{web}.politeness.RobotsMiddleware": 100,
            f"{web}.politeness.PoliteRetry": 550,
            f"{web}.politeness.SafeCompression": 590,
            f"{web}.politeness.PatienceMiddleware": 610,
        },
        "SPIDER_MIDDLEWARES_BASE": {"scrapy.spidermiddlewares.referer.RefererMiddleware": 700},
        "DOWNLOAD_HANDLERS": {"http": handler, "https": handler},
        "TWISTED_DNS_RESOLVER": f"{web}.guard.GuardedResolver",
        ALLOW_PRIVATE: list(job.allow_private) + ([job.proxy.split("/")[2].partition(":")[0]] if job.proxy else []),
        "EXTENSIONS": {"scrapy.extensions.throttle.AutoThrottle": None, f"{web}.politeness.PoliteThrottle": 0},
        "AUTOTHROTTLE_ENABLED": job.delay > 0 and job.target_concurrency > 0,
        "AUTOTHROTTLE_START_DELAY": job.delay,
        "AUTOTHROTTLE_MAX_DELAY": max(60.0, job.delay),
        "AUTOTHROTTLE_TARGET_CONCURRENCY": job.target_concurrency,
        "CONCURRENT_REQUESTS": job.budgets.in_all,
        "CONCURRENT_REQUESTS_PER_DOMAIN": job.concurrency,
        "DOWNLOAD_DELAY": job.delay,
        "DOWNLOAD_DELAY_JITTER": 0.0,
        "DOWNLOAD_TIMEOUT": job.timeout,
        "DOWNLOAD_MAXSIZE": job.max_bytes,
        "DOWNLOAD_WARNSIZE": 0,
        "RETRY_TIMES": 2,
        "RETRY_HTTP_CODES": [500, 502, 504, 520, 522, 524, 408],
        "REDIRECT_MAX_TIMES": 5,
        "COOKIES_ENABLED": False,
        "TELNETCONSOLE_ENABLED": False,
        "LOG_LEVEL": "ERROR",
    }


def main() -> None:
    """Run the job named on the command line."""
    job = CrawlJob.read(Path(sys.argv[1]))
    logging.getLogger("scrapy").setLevel(logging.ERROR)
    process = CrawlerProcess(settings(job))
    process.crawl(CrawlSpider, job=job)
    process.start()


if __name__ == "__main__":
    main()

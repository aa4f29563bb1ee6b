"""The crawl against a server of the test: what is fetched, politeness, limits, a stop."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from llm_core.contract import BadInput, Progress, Stop
from llm_core.data import acquire
from llm_core.data.web.job import CrawlJob
from llm_core.data.web.store import crawl
from llm_core.settings.acquire import AcquireConfig, WebSource


def test_what_is_fetched_and_what_is_not(site: Any, job: CrawlJob, crawls: Any, tmp_path: Path) -> None:
    site.answers["/robots.txt"] = (200, {}, b"User-agent: *\nDisallow: /closed/")
    site.page(
        "/", "/a#part", "/a", "/b?utm_source=x", "/closed/x", "/photo", "/moved", "http://example.org/", "/deep/1"
    )
    site.page("/a", "/"), site.page("/b"), site.page("/closed/x"), site.page("/target")
    site.page("/deep/1", "/deep/2"), site.page("/deep/2", "/deep/3"), site.page("/deep/3")
    site.answers["/photo"] = (200, {"Content-Type": "image/png"}, b"\x89PNG" + b"0" * 100)
    site.answers["/moved"] = (302, {"Location": "/target"}, b"")
    site.answers["/b"] = (200, {"Content-Type": "text/html; charset=utf-8", "Set-Cookie": "a=b"}, b"<p>b</p>" * 50)
    rows = crawls.examples(replace(job, depth=2))
    table = {row["url"].removeprefix(site.url): row for row in crawls.table(job, tmp_path / "out")}
    assert sorted(table) == ["/", "/a", "/b", "/deep/1", "/deep/2", "/target"]
    counts = {name: row["count"] for name, row in rows.items()}
    assert counts == {"stored": 6, "robots": 1, "type": 1, "redirect": 1, "depth": 1}
    assert rows["robots"]["detail"] == "line 2: Disallow: /closed/"
    assert site.asked["/closed/x"] == 0
    assert max(site.asked.values()) == 1
    assert site.agents == {"groundup/0.1 (+test@example.org)"}
    assert crawls.go(replace(job, depth=3)) == {"stored": 7, "robots": 1, "type": 1, "redirect": 1}, "deeper goes on"
    assert max(site.asked.values()) <= 2, "the second crawl read robots.txt again, and nothing else"
    page = table["/b"]
    assert (page["type"], page["status"], page["source"]) == ("text/html", 200, "site")
    assert (page["bytes"], page["licence"], page["robots"]) == (400, "CC0-1.0", None)


def test_robots_that_cannot_be_had(site: Any, job: CrawlJob, crawls: Any) -> None:
    site.answers["/robots.txt"] = (500, {}, b"")
    site.page("/")
    assert crawls.go(job) == {"robots_unreachable": 1}
    site.answers["/robots.txt"] = (404, {}, b"")
    assert crawls.go(job) == {"stored": 1}, "what failed for the moment is asked for again by the next run"


def test_robots_behind_redirects_and_beyond_its_limit(site: Any, job: CrawlJob, crawls: Any) -> None:
    site.answers["/robots.txt"] = (301, {"Location": "/moved.txt"}, b"")
    rules = b"User-agent: *\nDisallow: /closed\n"
    long = rules + b"#" * 600_000 + b"\nDisallow: /late\n"
    site.answers["/moved.txt"] = (200, {"Content-Type": "text/plain"}, long)
    site.page("/", "/closed", "/late")
    site.page("/late")
    assert crawls.go(job) == {"stored": 2, "robots": 1}, "the first 500 KiB count"


def test_crawl_delay_is_the_least_distance(site: Any, job: CrawlJob, crawls: Any) -> None:
    site.answers["/robots.txt"] = (200, {}, b"User-agent: *\nCrawl-delay: 0.5")
    site.page("/", "/a", "/b")
    site.page("/a"), site.page("/b")
    crawls.go(replace(job, delay=0.01))
    times = sorted(site.times["/"] + site.times["/a"] + site.times["/b"])
    assert len(times) == 3
    assert min(b - a for a, b in pairwise(times)) > 0.4, "AutoThrottle does not go below it"


def test_a_crawl_delay_beyond_the_limit_leaves_the_host_alone(site: Any, job: CrawlJob, crawls: Any) -> None:
    site.answers["/robots.txt"] = (200, {}, b"User-agent: *\nCrawl-delay: 3600")
    site.page("/")
    assert crawls.go(job) == {"crawl_delay": 1}
    assert site.asked["/"] == 0


def put_off(site: Any, path: str, status: int, wait: str | Callable[[], str], times: int = 1) -> None:
    """Answer a path with a refusal a number of times, then with a page."""

    def script(handler: Any) -> None:
        if site.asked[path] <= times:
            handler.answer(status, {"Retry-After": wait if isinstance(wait, str) else wait()}, b"later")
        else:
            handler.answer(200, {}, b"<p>now</p>")

    site.scripts[path] = script


def test_retry_after_holds_its_host_and_nobody_else(site: Any, job: CrawlJob, crawls: Any) -> None:
    put_off(site, "/busy", 503, "2")
    site.page("/", *(f"/p{i}" for i in range(40)))
    for i in range(40):
        site.page(f"/p{i}")
    other = f"http://localhost:{site.port}"  # the same server under another name: another host
    both = replace(
        job, start=(f"{site.url}/busy", f"{other}/"), concurrency=1, allow_private=("127.0.0.1", "localhost")
    )
    rows = crawls.examples(both)
    assert rows["stored"]["count"] == 42
    assert rows["stored: after_waiting"]["url"] == f"{site.url}/busy"
    first, second = site.times["/busy"]
    assert second - first >= 1.9
    others = [time for path, times in site.times.items() if path.startswith("/p") for time in times]
    assert sum(first < time < second for time in others) >= 3, "the other host was crawled in the meantime"


def test_retry_after_as_a_date(site: Any, job: CrawlJob, crawls: Any) -> None:
    put_off(site, "/", 429, lambda: format_datetime(datetime.now(UTC) + timedelta(seconds=3), usegmt=True))
    assert crawls.go(job) == {"stored": 1}
    first, second = site.times["/"]
    assert second - first > 0.5


def test_a_host_that_wants_more_than_the_limit_is_left_for_the_next_run(site: Any, job: CrawlJob, crawls: Any) -> None:
    put_off(site, "/", 503, "86400")
    assert crawls.go(replace(job, max_retry_after=1.0)) == {"postponed": 1}
    assert site.asked["/"] == 1
    assert crawls.go(job) == {"stored": 1}, "nothing is lost"


def test_a_host_that_never_lets_anybody_in_ends_the_crawl(site: Any, job: CrawlJob, crawls: Any) -> None:
    put_off(site, "/", 429, "0", times=1_000)
    assert crawls.go(job)["postponed"] == 1
    assert site.asked["/"] < 10


def test_budgets_patterns_and_body_cap(site: Any, job: CrawlJob, crawls: Any, tmp_path: Path) -> None:
    site.page("/", *(f"/page/{i}" for i in range(30)), "/other/1", "/page/skip")
    for i in range(30):
        site.page(f"/page/{i}")
    site.page("/other/1"), site.page("/page/skip"), site.page("/page/0", text="x" * 50_000)
    limited = replace(job, max_pages=9, allow=("/page/",), deny=("skip",), max_bytes=20_000)
    outcomes = crawls.go(limited)
    assert outcomes == {"stored": 9, "too_large": 1, "budget": 21}
    assert site.asked["/other/1"] == site.asked["/page/skip"] == 0
    assert crawls.go(replace(limited, max_pages=12))["stored"] == 12, "a larger budget goes on"
    assert crawls.go(replace(limited, max_pages=20, max_pages_per_host=15))["stored"] == 15
    assert crawls.go(replace(limited, max_pages=20, max_requests=17))["stored"] == 16
    narrower = replace(limited, deny=("skip", "/page/1$"))
    assert len(crawls.table(narrower, tmp_path / "out")) == 15, "what a later job denies is left out of the snapshot"


def test_directives_are_honoured_as_the_source_says(site: Any, job: CrawlJob, crawls: Any, tmp_path: Path) -> None:
    site.page("/", "/meta", "/header", "/other", "/leads", "/art")
    site.page("/meta", "/from-meta", head="<meta name=ROBOTS content='NOINDEX, follow'>")
    site.page("/header", "/from-header", X_Robots_Tag="noai, nofollow")
    site.page("/other", X_Robots_Tag="otherbot: noindex")
    site.page("/leads", head="<meta name=groundup content=noarchive>")
    site.page("/art", head="<meta name=robots content=noimageai>")
    site.page("/from-meta"), site.page("/from-header")
    assert crawls.go(job) == {"stored": 4, "noindex": 1, "noai": 1, "noarchive": 1}
    table = {row["url"].removeprefix(site.url): row["robots"] for row in crawls.table(job, tmp_path / "out")}
    assert table == {"/": None, "/art": "noimageai", "/from-meta": None, "/other": None}
    free = replace(job, store=str(tmp_path / "free"), respect=())
    assert crawls.go(free) == {"stored": 8}
    table = {row["url"].removeprefix(site.url): row["robots"] for row in crawls.table(free, tmp_path / "free-out")}
    assert table["/header"] == "noai, nofollow"
    assert table["/meta"] == "noindex"
    assert "/from-header" in table


def test_sitemaps(site: Any, job: CrawlJob, crawls: Any, tmp_path: Path) -> None:
    def urlset(*paths: str) -> bytes:
        space = "xmlns='http://www.sitemaps.org/schemas/sitemap/0.9'"
        return f"<urlset {space}>{''.join(f'<url><loc>{site.url}{p}</loc></url>' for p in paths)}</urlset>".encode()

    site.page("/")
    for i in range(4):
        site.page(f"/{i}")
    index = f"<sitemapindex><sitemap><loc>{site.url}/b.xml.gz</loc></sitemap></sitemapindex>".encode()
    site.answers["/robots.txt"] = (200, {}, f"Sitemap: {site.url}/a.xml\nSitemap: /c.txt".encode())
    site.answers["/a.xml"] = (200, {"Content-Type": "application/xml"}, index)
    site.answers["/b.xml.gz"] = (200, {"Content-Type": "application/gzip"}, gzip.compress(urlset("/0", "/1")))
    site.answers["/c.txt"] = (200, {"Content-Type": "text/plain"}, f"{site.url}/2\nhttp://example.org/x\n".encode())
    site.answers["/sitemap.xml"] = (200, {"Content-Type": "text/xml"}, urlset("/3"))
    assert crawls.go(job) == {"stored": 4, "sitemap": 3}
    assert site.asked["/sitemap.xml"] == 0, "robots.txt names others"
    site.answers["/robots.txt"] = (404, {}, b"")
    guessed = replace(job, store=str(tmp_path / "guess"), sitemaps="guess")
    assert crawls.go(guessed) == {"stored": 2, "sitemap": 1}
    assert crawls.go(replace(job, store=str(tmp_path / "none"), sitemaps="none")) == {"stored": 1}


def test_a_finished_store_is_not_asked_again(site: Any, job: CrawlJob, crawls: Any) -> None:
    site.page("/", "/a", "/missing"), site.page("/a")
    crawls.go(job)
    before = site.asked.total()
    assert crawls.go(job) == {"stored": 2, "status 404": 1}
    assert site.asked.total() == before, "not even robots.txt"


def test_one_sigterm_ends_it_cleanly(site: Any, job: CrawlJob, crawls: Any, tmp_path: Path) -> None:
    site.many(240)
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
    assert crawls.go(job) == {"stored": 241}
    assert max(asked for path, asked in site.asked.items() if path != "/robots.txt") == 1


def web(site: Any, **values: Any) -> WebSource:
    values = {"contact": "x@example.org", "delay_seconds": 0, "allow_private": ("127.0.0.1",), **values}
    return WebSource(kind="web", name="site", start=(f"{site.url}/",), **values)


def test_acquire_of_a_web_source(site: Any, tmp_path: Path) -> None:
    site.page("/", "/a", "/gone"), site.page("/a")
    config = AcquireConfig(sources=(web(site, weight=2.0),), store=tmp_path / "store")
    events: list[Any] = []
    report = acquire.run(config, out=tmp_path / "raw", scratch=tmp_path, emit=events.append)
    assert report.metrics["pages"] == 2
    assert {row["outcome"]: row["count"] for row in report.tables["outcomes"]} == {"stored": 2, "status 404": 1}
    assert any(isinstance(event, Progress) and event.unit == "pages" for event in events)
    inodes = {os.stat(path).st_ino for path in (tmp_path / "store").rglob("*.warc.gz")}
    assert {os.stat(path).st_ino for path in (tmp_path / "raw").rglob("*.warc.gz")} == inodes, "a hard link, no copy"


def test_a_stop_ends_the_crawl_and_leaves_no_product(site: Any, tmp_path: Path) -> None:
    site.many(240)
    site.delay = 0.02

    def emit(event: Any) -> None:
        if isinstance(event, Progress) and event.done >= 10:
            raise Stop

    config = AcquireConfig(sources=(web(site),), store=tmp_path / "s")
    with pytest.raises(Stop):
        acquire.run(config, out=tmp_path / "raw", scratch=tmp_path, emit=emit)
    assert not (tmp_path / "raw").exists()
    assert sum(site.asked.values()) < 240


def test_a_site_that_cannot_be_reached_is_bad_input(tmp_path: Path) -> None:
    starts = ("http://127.0.0.1:9/", "http://nowhere.invalid/")
    source = WebSource(kind="web", name="none", start=starts, contact="x@example.org", allow_private=("127.0.0.1",))
    with pytest.raises(BadInput, match=r"'none' gave nothing: .* cannot be reached .*; is there a network\?"):
        acquire.run(
            AcquireConfig(sources=(source,), store=tmp_path / "s"),
            out=tmp_path / "raw",
            scratch=tmp_path,
            emit=lambda _: None,
        )


def test_nothing_inside_is_reached_without_leave(site: Any, tmp_path: Path) -> None:
    site.page("/")
    config = AcquireConfig(sources=(web(site, allow_private=()),), store=tmp_path / "s")
    with pytest.raises(BadInput, match=r"private_address: 1, as 127\.0\.0\.1 leads to 127\.0\.0\.1, which is loopback"):
        acquire.run(config, out=tmp_path / "raw", scratch=tmp_path, emit=lambda _: None)
    assert site.asked.total() == 0, "not even for its robots.txt"

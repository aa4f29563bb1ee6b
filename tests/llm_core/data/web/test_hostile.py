"""A site that does everything wrong: the crawl ends by itself, within its budgets, and names each case."""

from __future__ import annotations

import gzip
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from llm_core.data.web.job import CrawlJob

BOMB = 300_000_000


def bomb() -> bytes:
    """300 MB of zeros as one gzip member of 300 kB."""
    block = bytes(1_000_000)
    blocks = []
    import io

    target = io.BytesIO()
    with gzip.GzipFile(fileobj=target, mode="wb", compresslevel=9, mtime=0) as file:
        for _ in range(BOMB // len(block)):
            file.write(block)
    blocks.append(target.getvalue())
    return b"".join(blocks)


def raw(*lines: str, body: bytes = b"") -> Callable[[Any], None]:
    """Answer with these bytes and hang up."""

    def script(handler: Any) -> None:
        handler.wfile.write("\r\n".join(["HTTP/1.1 200 OK", "Content-Type: text/html", *lines, "", ""]).encode() + body)
        handler.wfile.flush()
        handler.close_connection = True

    return script


def slow_loris(handler: Any) -> None:
    """A byte every tenth of a second, for as long as somebody listens."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 1000\r\n\r\n")
    for _ in range(200):
        handler.wfile.write(b"x")
        handler.wfile.flush()
        time.sleep(0.1)


def endless_headers(handler: Any) -> None:
    """Header lines without an end."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
    for i in range(200_000):
        handler.wfile.write(b"X-%d: y\r\n" % i * 10)


def calendar(handler: Any) -> None:
    """Every day links to the next, and to the next month."""
    day = int(handler.path.rpartition("/")[2])
    links = f"<a href='/calendar/{day + 1}'>next</a><a href='/calendar/{day + 31}'>month</a>"
    handler.answer(200, {}, f"<p>day {day}</p>{links}".encode())


def moving(handler: Any) -> None:
    """Redirects to another place, each time a new one."""
    handler.answer(302, {"Location": f"/moving/{int(handler.path.rpartition('/')[2]) + 1}"}, b"")


def build(site: Any) -> None:
    """Every case under its own path, linked from the front page."""
    site.answers["/loop/a"] = (302, {"Location": "/loop/b"}, b"")
    site.answers["/loop/b"] = (302, {"Location": "/loop/a"}, b"")
    site.answers["/self"] = (302, {"Location": "/self"}, b"")
    site.scripts["/calendar/"] = calendar
    site.scripts["/moving/"] = moving
    site.answers["/bomb"] = (200, {"Content-Encoding": "gzip"}, bomb())
    site.answers["/nogzip"] = (200, {"Content-Encoding": "gzip"}, b"this is no gzip")
    site.answers["/charset"] = (200, {"Content-Type": "text/html; charset=iso-8859-1"}, "<p>übel 漢字</p>".encode())
    site.scripts["/loris"] = slow_loris
    site.scripts["/short"] = raw("Content-Length: 5000", body=b"<p>too short</p>")
    site.scripts["/chunk"] = raw("Transfer-Encoding: chunked", body=b"400\r\n<p>less than promised</p>")
    site.page("/large", text="x" * 10_000_000)
    site.scripts["/unannounced"] = raw("Connection: close", body=b"x" * 10_000_000)
    site.page("/header", X_Long="y" * 70_000)
    site.scripts["/headers"] = endless_headers
    site.answers["/inside"] = (302, {"Location": f"http://127.0.0.2:{site.port}/"}, b"")
    site.answers["/metadata"] = (302, {"Location": "http://169.254.169.254/latest/meta-data/"}, b"")
    site.answers["/away"] = (302, {"Location": "http://example.org/"}, b"")
    site.answers["/attributes"] = (200, {}, b"<a " + b" ".join(b"a%d" % i for i in range(100_000)) + b">x</a>")
    site.page("/deep", text="<div>" * 100_000)
    site.answers["/image"] = (200, {"Content-Type": "image/png"}, b"\x89PNG" * 1_000_000)
    site.answers["/broken"] = (500, {}, b"")
    site.page("/noindex", head="<meta name=robots content=noindex>")
    site.answers["/robots.txt"] = (200, {}, b"User-agent: *\nDisallow: /closed")

    def busy(handler: Any) -> None:
        first = site.asked["/busy"] == 1
        handler.answer(429 if first else 200, {"Retry-After": "1"} if first else {}, b"<p>busy</p>")

    site.scripts["/busy"] = busy
    paths = (
        "loop/a self moving/0 bomb nogzip charset loris short chunk large unannounced header headers inside metadata "
        "away attributes deep image broken noindex busy closed calendar/0"
    )
    inside = f"http://localhost:{site.port}/secret"  # a name that resolves to loopback, and is not allowed
    site.page("/", *(f"/{path}" for path in paths.split()), inside, f"http://0x7f.1:{site.port}/secret")


EXPECTED = {
    "redirect_loop": 2, "too_many_redirects": 1, "redirect": 6, "redirect_offsite": 1, "private_address": 4,
    "too_large": 3, "bad_encoding": 1, "timeout": 1, "truncated": 2, "header_too_large": 2, "too_many_attributes": 1,
    "type": 1, "status 500": 1, "noindex": 1, "robots": 1,
}  # fmt: skip


def test_the_hostile_site_ends_by_itself_and_each_case_is_named(
    site: Any, job: CrawlJob, crawls: Any, tmp_path: Path
) -> None:
    build(site)
    hosts = (f"localhost:{site.port}", f"0x7f.1:{site.port}")
    hostile = replace(job, hosts=hosts, max_pages=25, timeout=1.5, depth=50, concurrency=4)
    rows = crawls.examples(hostile)
    counts = {name: row["count"] for name, row in rows.items()}
    assert {name: counts.get(name) for name in EXPECTED} == EXPECTED, rows
    assert counts["stored"] == 25
    assert counts["budget"] > 0, "the calendar has no end"
    assert rows["stored: wrong_charset"]["url"] == f"{site.url}/charset"
    assert rows["stored: after_waiting"]["url"] == f"{site.url}/busy"
    for name, path in {
        "timeout": "loris", "type": "image", "bad_encoding": "nogzip", "too_many_attributes": "attributes",
        "redirect_offsite": "away", "robots": "closed", "noindex": "noindex", "too_many_redirects": "moving/5",
    }.items():  # fmt: skip
        assert rows[name]["url"] == f"{site.url}/{path}"
    assert site.asked["/secret"] == 0
    assert set(counts) == {*EXPECTED, "stored", "budget", "stored: wrong_charset", "stored: after_waiting"}
    table = {row["url"].removeprefix(site.url) for row in crawls.table(hostile, tmp_path / "out")}
    assert {"/", "/charset", "/busy", "/deep", "/calendar/0"} <= table
    assert "/large" not in table

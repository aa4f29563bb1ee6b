"""Canonical URLs, links, and WARC segments whose writer was killed."""

from __future__ import annotations

import contextlib
import gzip
import sqlite3
from datetime import UTC, datetime
from pathlib import Path

import pytest
from fastwarc import ArchiveIterator as FastArchiveIterator
from hypothesis import given
from hypothesis import strategies as st
from warcio.archiveiterator import ArchiveIterator

from llm_core.data.web.frontier import Budgets, Frontier
from llm_core.data.web.page import declared_encoding, header_directives, links, read_page, too_many_attributes
from llm_core.data.web.politeness import retry_after
from llm_core.data.web.sitemaps import BadSitemap, read_sitemap
from llm_core.data.web.urls import Scope, canonical
from llm_core.data.web.warc import SegmentWriter, recover, whole_members


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("HTTP://Example.ORG:80/a#b", "http://example.org/a"),
        ("https://example.org:443", "https://example.org/"),
        ("https://example.org:8443/x", "https://example.org:8443/x"),
        ("http://example.org/?b=2&a=1&utm_source=z&gclid=3", "http://example.org/?a=1&b=2"),
        ("http://example.org/?utm_medium=z", "http://example.org/"),
        ("http://user:secret@example.org/", "http://example.org/"),
        ("mailto:a@example.org", None),
        ("javascript:void(0)", None),
        ("http://a.org/x/../y/./z/..", "http://a.org/y/"),
        ("http://a.org/%2e%2e/%7Euser/%c3%bc", "http://a.org/~user/%C3%BC"),
        ("http://Bücher.example/ü?q=ü", "http://xn--bcher-kva.example/%C3%BC?q=%C3%BC"),
        ("http://a.org./x", "http://a.org/x"),
        ("http://[::1]:8080/", "http://[::1]:8080/"),
        ("http://a.org:99999/", None),
        ("http://", None),
        ("http://[broken/", None),
    ],
)
def test_canonical(url: str, expected: str | None) -> None:
    assert canonical(url) == expected


@given(st.text(max_size=40))
def test_canonical_is_idempotent(tail: str) -> None:
    once = canonical("http://example.org/" + tail)
    assert once is None or canonical(once) == once


def test_links_are_unique_in_order_and_honour_base_and_nofollow() -> None:
    html = b"<base href='/docs/'><a href='b#1'>1</a><a href='b#2'>2</a><a href='a'>3</a><a href='mailto:x'>4</a>"
    assert links(html, "http://example.org/x", "utf-8") == ["http://example.org/docs/b", "http://example.org/docs/a"]
    assert links(b"<meta name=robots content='noindex, nofollow'>" + html, "http://example.org/x", "utf-8") == []
    assert links(b"", "http://example.org/", "utf-8") == []


def test_scope() -> None:
    scope = Scope(["example.org"], [r"/docs/"], [r"\?print"])
    assert scope.admits("http://example.org/docs/a")
    for outside in ("http://example.org/blog", "http://other.org/docs/", "http://example.org/docs/?print=1"):
        assert not scope.admits(outside)
    assert not scope.admits("http://example.org/docs/paper.PDF")
    assert not scope.admits("http://example.org/docs/" + "x" * 2_000)
    assert scope.refusal("http://example.org/docs/?print=1") == r"deny: '\\?print' matches"


def segment(folder: Path, count: int = 5) -> SegmentWriter:
    writer = SegmentWriter(folder, "test")
    for i in range(count):
        headers = [("Content-Type", "text/html"), ("Content-Encoding", "gzip"), ("Content-Length", "3")]
        writer.write(f"http://example.org/{i}", "200 OK", headers, b"body %d" % i * 100, "2026-01-01T00:00:00Z")
    return writer


def read_both(path: Path) -> list[tuple[str, bytes]]:
    with open(path, "rb") as file:
        slow = [
            (r.rec_headers["WARC-Target-URI"], r.content_stream().read())
            for r in ArchiveIterator(file)
            if r.rec_type == "response"
        ]
    with open(path, "rb") as file:
        fast = [
            (r.headers["WARC-Target-URI"], r.reader.read())
            for r in FastArchiveIterator(file, parse_http=True)
            if r.headers["WARC-Type"] == "response"
        ]
    assert slow == fast
    return slow


def test_segments_are_read_whole_by_both_readers(tmp_path: Path) -> None:
    writer = segment(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["00000.warc.gz.open"]
    writer.close()
    assert [path.name for path in tmp_path.iterdir()] == ["00000.warc.gz"]
    assert read_both(tmp_path / "00000.warc.gz") == [
        (f"http://example.org/{i}", b"body %d" % i * 100) for i in range(5)
    ]


@pytest.mark.parametrize("cut", [1, 7, 40, 100])
def test_a_torn_tail_is_cut_to_the_last_whole_record(tmp_path: Path, cut: int) -> None:
    writer = segment(tmp_path)
    writer.flush()
    path = tmp_path / "00000.warc.gz.open"
    data = path.read_bytes()
    assert whole_members(path) == len(data)
    path.write_bytes(data[:-cut])
    recover(tmp_path)
    assert len(read_both(tmp_path / "00000.warc.gz")) == 4
    again = segment(tmp_path, 1)
    again.close()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["00000.warc.gz", "00001.warc.gz"]


def test_rubbish_is_removed(tmp_path: Path) -> None:
    (tmp_path / "00000.warc.gz.open").write_bytes(b"no gzip at all")
    (tmp_path / "00001.warc.gz.open").write_bytes(gzip.compress(b"x" * 1000)[:-5])
    recover(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_whole_members_of_real_archives(shared_data: Path) -> None:
    for path in sorted((shared_data / "warc").rglob("*.gz")):
        whole = whole_members(path)
        assert 0 <= whole <= path.stat().st_size
    assert whole_members(shared_data / "warc" / "warcio" / "example.warc.gz") > 0


def test_frontier_hands_out_hosts_in_turn_within_budgets(tmp_path: Path) -> None:
    budgets = Budgets(max_pages=5, max_pages_per_host=3, per_host=3)
    frontier = Frontier(tmp_path / "f.sqlite", budgets)
    assert frontier.add([f"http://a.org/{i}" for i in range(10)], 0) == 10
    frontier.add(["http://b.org/0"], 0)
    assert not frontier.add(["http://b.org/0"], 3), "known"
    taken = [entry.url for entry in iter(frontier.take, None)]
    assert taken == ["http://a.org/0", "http://b.org/0", "http://a.org/1", "http://a.org/2"]
    frontier.finish("http://a.org/0", "status 500")
    assert frontier.take().url == "http://a.org/3", "a page that failed does not count"  # type: ignore[union-attr]
    frontier.finish("http://a.org/1", "stored", {"segment": "00000.warc.gz", "digest": "d"})
    frontier.close()
    reopened = Frontier(tmp_path / "f.sqlite", Budgets(max_pages=5))
    assert reopened.waiting.total() == 9, "what was in flight waits again"
    assert reopened.stored.total() == 1
    reopened.close()


def test_a_url_that_was_too_deep_waits_once_a_shorter_way_is_found(tmp_path: Path) -> None:
    frontier = Frontier(tmp_path / "f.sqlite", Budgets(max_pages=5, depth=2))
    assert frontier.add(["http://a.org/deep", "http://a.org/deeper"], 3) == 0
    assert frontier.take() is None
    assert frontier.add(["http://a.org/deep"], 2) == 1
    assert frontier.add(["http://a.org/deep"], 1) == 0
    entry = frontier.take()
    assert entry is not None
    assert (entry.url, entry.depth) == ("http://a.org/deep", 2)
    frontier.close()
    deeper = Frontier(tmp_path / "f.sqlite", Budgets(max_pages=5, depth=3))
    assert deeper.waiting.total() == 2
    deeper.close()


def test_a_blocked_host_waits_and_a_postponed_one_is_left(tmp_path: Path) -> None:
    frontier = Frontier(tmp_path / "f.sqlite", Budgets(max_pages=50))
    frontier.add(["http://a.org/0", "http://b.org/0", "http://c.org/0"], 0)
    frontier.block("a.org", 1_000.0)
    frontier.block("b.org", 0.0)
    frontier.postpone("c.org")
    assert frontier.pending()
    assert frontier.take() is None
    assert 900 < (frontier.unblock() or 0) <= 1_000
    assert frontier.take().url == "http://b.org/0"  # type: ignore[union-attr]
    assert frontier.take() is None
    frontier.close()


def test_the_requests_in_flight_and_the_requests_in_all_are_limited(tmp_path: Path) -> None:
    frontier = Frontier(tmp_path / "f.sqlite", Budgets(max_pages=50, max_requests=4, per_host=2, in_all=3))
    frontier.add([f"http://{host}.org/{i}" for host in "ab" for i in range(9)], 0)
    taken = [entry.url for entry in iter(frontier.take, None)]
    assert taken == ["http://a.org/0", "http://b.org/0", "http://a.org/1"]
    for url in taken:
        frontier.finish(url, "status 404")
    assert len([*iter(frontier.take, None)]) == 1
    assert not frontier.pending()
    frontier.close()


def test_a_store_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    old = sqlite3.connect(tmp_path / "f.sqlite")
    columns = "state, tries, outcome, status, content_type, digest, bytes, segment, offset, fetched, etag"
    old.execute(f"CREATE TABLE pages (url TEXT PRIMARY KEY, host, depth, {columns}, last_modified, robots)")
    old.execute("INSERT INTO pages (url, host, depth, state, tries) VALUES ('http://a.org/', 'a.org', 0, 0, 0)")
    old.commit()
    old.close()
    frontier = Frontier(tmp_path / "f.sqlite", Budgets(max_pages=1))
    assert frontier.take().url == "http://a.org/"  # type: ignore[union-attr]
    frontier.close()


def test_retry_after_in_seconds_and_as_a_date() -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    assert retry_after("120", now) == 120
    assert retry_after("Thu, 01 Jan 2026 00:01:00 GMT", now) == 60
    assert retry_after("Wed, 31 Dec 2025 00:00:00 GMT", now) == 0
    for nothing in (None, "", "soon", "-1", "1.5", "²"):
        assert retry_after(nothing, now) is None


def test_header_directives() -> None:
    assert header_directives(["noindex, nofollow"], "groundup") == {"noindex", "nofollow"}
    assert header_directives(["NONE"], "groundup") == {"noindex", "nofollow"}
    assert header_directives(["otherbot: noindex", "groundup: noai, noarchive"], "groundup") == {"noai", "noarchive"}
    assert header_directives(["unavailable_after: 25 Jun 2030 15:00:00 PST, noindex"], "groundup") == {"noindex"}
    assert header_directives(["max-snippet:-1"], "groundup") == frozenset()


def test_tags_that_would_hold_up_a_parser_are_noticed() -> None:
    names = b" ".join(b"a%d" % i for i in range(20_000))
    for hostile in (b"<a " + names + b">", b"<p>x</p><div\n" + names.replace(b" ", b"/"), b"<a " + names):
        assert too_many_attributes(hostile)
    data = b"<img src='data:image/png;base64," + b"QUJD/" * 40_000 + b"'>"
    for harmless in (b"", data, b"<p>" + b"word " * 100_000 + b"</p>", b"<a b=c>x</a>" * 20_000):
        assert not too_many_attributes(harmless)


@pytest.mark.parametrize(
    ("content_type", "body", "expected"),
    [
        ("text/html", b"plain", (None, False)),
        ("text/html; charset=ISO-8859-1", "ü".encode("latin-1"), ("iso-8859-1", False)),
        ("text/html; charset=ISO-8859-1", "ü".encode(), ("utf-8", True)),
        ("text/html; charset=utf-8", "ü".encode("latin-1"), (None, True)),
        ("text/html; charset=utf-16", "ü".encode("utf-16"), ("utf-16", False)),
    ],
)
def test_declared_encoding(content_type: str, body: bytes, expected: tuple[str | None, bool]) -> None:
    assert declared_encoding(content_type, body) == expected


def test_sitemaps_of_all_forms() -> None:
    space = "xmlns='http://www.sitemaps.org/schemas/sitemap/0.9'"
    xml = f"<?xml version='1.0'?><urlset {space}><url><loc> http://a.org/1 </loc></url><url><loc>x</loc></url></urlset>"
    assert read_sitemap(xml.encode()) == (["http://a.org/1"], [])
    assert read_sitemap(gzip.compress(xml.encode())) == (["http://a.org/1"], [])
    assert read_sitemap(b"<sitemapindex><sitemap><loc>http://a.org/s.xml</loc></sitemap></sitemapindex>") == (
        [], ["http://a.org/s.xml"],
    )  # fmt: skip
    assert read_sitemap(b"http://a.org/1\nhttp://a.org/2\n") == (["http://a.org/1", "http://a.org/2"], [])
    assert read_sitemap(b"<urlset><url><loc>http://a.org/1</loc></url><url><lo") == (["http://a.org/1"], [])
    assert read_sitemap(b"") == ([], [])


def test_sitemaps_that_attack() -> None:
    entity = b"<!DOCTYPE x [<!ENTITY a '" + b"x" * 1_000 + b"'><!ENTITY b '" + b"&a;" * 1_000 + b"'>]>"
    laughs = entity + b"<urlset><url><loc>http://a.org/&b;</loc></url><url><loc>http://a.org/1</loc></url></urlset>"
    assert len("".join(read_sitemap(laughs).pages)) < 100
    outside = (
        b"<!DOCTYPE x [<!ENTITY f SYSTEM 'file:///etc/passwd'>]><urlset><url><loc>http://a/&f;</loc></url></urlset>"
    )
    assert not [url for url in read_sitemap(outside).pages if "root" in url]
    with pytest.raises(BadSitemap, match="larger than"):
        read_sitemap(gzip.compress(b" " * 51_000_000))
    with pytest.raises(BadSitemap, match="gzip"):
        read_sitemap(gzip.compress(b"http://a.org/" * 1_000)[:-20])


@given(st.binary(max_size=300))
def test_no_bytes_break_a_sitemap_or_a_page(body: bytes) -> None:
    with contextlib.suppress(BadSitemap):
        read_sitemap(body)
    read_page(body, "http://a.org/", None)
    too_many_attributes(body)

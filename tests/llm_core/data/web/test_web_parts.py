"""Canonical URLs, links, and WARC segments whose writer was killed."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from fastwarc import ArchiveIterator as FastArchiveIterator
from hypothesis import given
from hypothesis import strategies as st
from warcio.archiveiterator import ArchiveIterator

from llm_core.data.web.frontier import Budgets, Frontier
from llm_core.data.web.page import links
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
    frontier = Frontier(tmp_path / "f.sqlite", max_pages=5, max_pages_per_host=3)
    for i in range(10):
        frontier.add(f"http://a.org/{i}", 0)
    frontier.add("http://b.org/0", 0)
    assert not frontier.add("http://b.org/0", 3), "known"
    taken = [entry.url for entry in iter(frontier.take, None)]
    assert taken == ["http://a.org/0", "http://b.org/0", "http://a.org/1", "http://a.org/2"]
    frontier.finish("http://a.org/0", "status 500")
    assert frontier.take().url == "http://a.org/3", "a page that failed does not count"
    frontier.finish("http://a.org/1", "stored", {"segment": "00000.warc.gz", "digest": "d"})
    frontier.close()
    reopened = Frontier(tmp_path / "f.sqlite", max_pages=5)
    assert reopened.outcomes() == {"status 500": 1, "stored": 1, "waiting": 9}
    reopened.close()

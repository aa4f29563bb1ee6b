"""robots.txt: published expectations, and the real files of thousands of sites."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote
from urllib.robotparser import RobotFileParser

import pytest
from hypothesis import given
from hypothesis import strategies as st
from protego import Protego

from llm_core.data.web.robots import LIMIT, Robots

DECLINED: frozenset[str] = frozenset()
"""Published tests that this project does not follow: none, Google's own extensions included."""


def real_files(shared_data: Path) -> Iterator[tuple[str, str]]:
    with gzip.open(shared_data / "robots" / "protego_real_robots.jsonl.gz") as file:
        for line in file:
            row = json.loads(line)
            yield row["host"], row["robots_txt"]


def test_the_142_published_expectations(shared_data: Path) -> None:
    cases = json.loads((shared_data / "robots" / "google_robotstxt_cases.json").read_text())
    wrong = Counter(
        case["test"]
        for case in cases
        if Robots(case["robots_txt"], case["user_agent"]).verdict(case["url"]).allowed != case["allowed"]
    )
    assert len(cases) == 142
    assert sum(case["test"].startswith("GoogleOnly_") for case in cases) == 70
    assert {*wrong} == DECLINED, wrong


def paths_of(text: str) -> list[str]:
    """Paths that a file's rules speak of, and some that it does not; as canonical URLs have them."""
    paths = {"/", "/index.html", "/search?q=x", "/wp-admin/"}
    for line in text.splitlines()[:40]:
        key, _, value = line.partition(":")
        value = value.partition("#")[0].strip().replace("*", "x").replace("$", "")
        if key.strip().lower() in ("allow", "disallow") and value.startswith("/"):
            paths |= {quote(value, "/?=&%"), quote(value, "/?=&%") + "a"}
    return sorted(paths)


def test_thousands_of_real_files_are_read_as_protego_reads_them(shared_data: Path) -> None:
    """Protego is Scrapy's parser. Where the two differ it is Protego that lets more through, but for rare spellings."""
    files = asked = 0
    stricter: Counter[str] = Counter()
    laxer: Counter[str] = Counter()
    for number, (host, text) in enumerate(real_files(shared_data)):
        ours = Robots(text, "groundup")  # every file is parsed
        files += 1
        if number % 8:
            continue
        theirs = Protego.parse(text)
        for path in paths_of(text):
            asked += 1
            allowed = ours.verdict(f"http://{host}{path}").allowed
            if allowed != theirs.can_fetch(f"http://{host}{path}", "groundup"):
                (laxer if allowed else stricter)[host] += 1
    assert files == 4_231
    assert asked > 10_000
    assert stricter.total() / asked < 0.005, stricter.most_common(5)
    assert laxer.total() / asked < 0.0005, laxer.most_common(5)


def test_plain_files_are_read_as_the_standard_library_reads_them() -> None:
    text = "User-agent: *\nDisallow: /a\nDisallow: /b/\nCrawl-delay: 3\n\nUser-agent: other\nDisallow: /\n"
    standard = RobotFileParser()
    standard.parse(text.splitlines())
    robots = Robots(text, "groundup")
    for path in ("/", "/a", "/ab", "/b", "/b/c", "/c"):
        assert robots.verdict(f"http://x.org{path}").allowed == standard.can_fetch("groundup", f"http://x.org{path}")
    assert robots.delay == standard.crawl_delay("groundup") == 3
    assert not Robots(text, "Other").verdict("http://x.org/c").allowed


def test_the_rule_that_decided_is_named() -> None:
    robots = Robots("User-agent: *\nDisallow: /a\nAllow: /a/b$ # yes\nSitemap: http://x.org/s.xml", "groundup")
    assert robots.verdict("http://x.org/a/b") == (True, "line 3: Allow: /a/b$")
    assert robots.verdict("http://x.org/a/bc") == (False, "line 2: Disallow: /a")
    assert robots.verdict("http://x.org/c") == (True, "no rule matches")
    assert robots.sitemaps == ["http://x.org/s.xml"]


@pytest.mark.parametrize(
    ("status", "allowed"), [(200, False), (404, True), (403, True), (410, True), (500, False), (503, False)]
)
def test_statuses_mean_what_rfc_9309_says(status: int, allowed: bool) -> None:
    robots = Robots.from_answer(status, b"User-agent: *\nDisallow: /", "groundup")
    assert robots.verdict("http://x.org/").allowed == allowed


def test_escapes_are_read_the_strict_way() -> None:
    robots = Robots("User-agent: *\nDisallow: /%7Eprivate\nDisallow: /a%2fb\nDisallow: /ü", "groundup")
    for path in ("/~private/x", "/%7Eprivate/x", "/a%2Fb", "/%C3%BC"):
        assert not robots.verdict(f"http://x.org{path}").allowed
    assert robots.verdict("http://x.org/a/b").allowed


def test_only_the_first_500_kib_count_and_patterns_cost_little() -> None:
    long = b"User-agent: *\n" + b"#" * LIMIT + b"\nDisallow: /"
    assert Robots.from_answer(200, long, "groundup").verdict("http://x.org/").allowed
    wild = Robots("User-agent: *\nDisallow: /" + "*a" * 2_000 + "$", "groundup")
    assert wild.verdict("http://x.org/" + "a" * 1_999).allowed, "no backtracking: this ends"


@given(st.text(max_size=200), st.text(max_size=50))
def test_no_text_breaks_it(text: str, path: str) -> None:
    Robots(text, "groundup").verdict("http://x.org/" + path)
    Robots("User-agent: *\n" + text, "groundup").verdict("http://x.org/" + path)

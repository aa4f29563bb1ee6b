"""Extraction on pages nobody here wrote: it never crashes, finds the text, and reads the head."""

from __future__ import annotations

import contextlib
import gzip
import json
import tarfile
from collections import Counter
from pathlib import Path

import pytest
from fastwarc import ArchiveIterator

from llm_core.data.extract import Unreadable, decode, extract
from llm_core.data.metadata import metadata

ARTICLE = b"""<!DOCTYPE html><html lang="en-GB"><head><title>The title</title>
<meta property="article:published_time" content="2024-05-06"><link rel="license" href="https://example.org/by">
<meta name="robots" content="noarchive"><link rel="canonical" href="https://example.org/canonical"></head><body>
<nav><a href="/">Home</a> <a href="/about">About us</a></nav><article><h1>The title</h1>
<p>%s</p><p>%s</p></article><footer>All rights reserved</footer></body></html>""" % (
    b"This paragraph says something at length, so that it is taken for the main text of the page. " * 5,
    b"A second paragraph goes on about the same thing, because one alone is hardly an article. " * 5,
)


@pytest.mark.parametrize("engine", ["trafilatura", "resiliparse"])
def test_text_and_metadata(engine: str) -> None:
    document = extract(ARTICLE, "https://example.org/x", engine=engine)
    assert document is not None
    assert document.text.count("This paragraph says") == 5
    assert "All rights reserved" not in document.text
    assert document.title == "The title"
    assert document.date == "2024-05-06"
    assert document.language == "en"
    assert document.licence == "https://example.org/by"
    assert document.url == "https://example.org/x"
    assert extract(ARTICLE).url == "https://example.org/canonical"
    assert metadata(ARTICLE.decode()).robots == "noarchive"


def test_plain_text_and_nothing() -> None:
    assert extract(b" just text < & >\n", "a.txt", "text/plain; charset=utf-8").text == "just text < & >"
    for empty in (b"", b"  ", b"<html></html>", b"<script>x()</script>"):
        assert extract(empty) is None


def test_caps() -> None:
    with pytest.raises(Unreadable, match="too_large"):
        extract(b"<p>" + b"x" * 2_000_001)
    with pytest.raises(Unreadable, match="too_deep"):
        extract(b"<div>" * 20_000 + b"text")
    with pytest.raises(Unreadable, match="binary"):
        extract(b"\x00\x01\x02" * 100)


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("Grüße aus Köln, schöne Straße. " * 5, "latin-1"),
        ("Русский текст о погоде и природе. " * 5, "windows-1251"),
        ("Ελληνικό κείμενο. " * 5, "utf-8"),
        ("日本語の文章です。" * 5, "shift_jis"),
        ("Text with a mark. " * 5, "utf-8-sig"),
        ("Sixteen bits. " * 5, "utf-16"),
    ],
)
def test_bytes_are_decoded_by_looking_at_them(text: str, encoding: str) -> None:
    assert decode(text.encode(encoding)) == text


def test_real_articles(shared_data: Path) -> None:
    """Mean shingle F1 over 40 pages of article-extraction-benchmark; trafilatura's own on all of them is .96."""
    truth = json.loads((shared_data / "article_extraction" / "ground-truth.json").read_text())
    scores = []
    with tarfile.open(shared_data / "article_extraction" / "html.tar") as archive:
        members = sorted((m for m in archive.getmembers() if m.name.endswith(".gz")), key=lambda m: m.name)[::2][:40]
        for member in members:
            file = archive.extractfile(member)
            assert file is not None
            document = extract(gzip.decompress(file.read()))
            key = Path(member.name).name.removesuffix(".html.gz")
            scores.append(f1(document.text if document else "", truth[key]["articleBody"]))
    assert len(scores) == 40
    assert sum(scores) / len(scores) > 0.92


def f1(found: str, expected: str) -> float:
    def shingles(text: str) -> Counter[tuple[str, ...]]:
        words = text.split()
        return Counter(tuple(words[i : i + 4]) for i in range(max(1, len(words) - 3)))

    a, b = shingles(found), shingles(expected)
    common = (a & b).total()
    return 2 * common / (a.total() + b.total())


def test_html5lib_inputs_never_crash(shared_data: Path) -> None:
    inputs: list[bytes] = []
    with tarfile.open(shared_data / "html5lib_tests" / "html5lib-tests.tar.gz") as archive:
        for member in archive.getmembers():
            file = archive.extractfile(member)
            if file is not None and member.name.startswith("tokenizer/") and member.name.endswith(".test"):
                cases = json.loads(file.read())
                inputs += [case["input"].encode("utf-8", "surrogatepass") for case in cases.get("tests", [])]
            elif file is not None and member.name.endswith(".dat"):
                inputs += [case.split(b"\n#encoding")[0] for case in file.read().split(b"#data\n")[1:]]
    assert len(inputs) > 3_000
    for html in inputs[::3]:
        with contextlib.suppress(Unreadable):
            extract(html)


def test_common_crawl_capture(shared_data: Path) -> None:
    with open(shared_data / "warc" / "cc_whirlwind.warc.gz", "rb") as file:
        pages = [
            record.reader.read()
            for record in ArchiveIterator(file, parse_http=True)
            if record.headers["WARC-Type"] == "response"
        ]
    assert len(pages) == 1
    document = extract(pages[0])
    assert document is not None
    assert len(document.text) > 200
    assert document.title

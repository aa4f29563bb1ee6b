"""A batch of pages of every bad kind: each is dropped with its reason or cleaned, and none costs another."""

from __future__ import annotations

import contextlib
import gzip
import io
import random
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from fastwarc import ArchiveIterator
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from benchmarks.article_score import article_pages
from llm_core.contract import BadInput
from llm_core.data.characters import CharacterOptions
from llm_core.data.filters import FilterOptions
from llm_core.data.pii import MaskOptions
from llm_core.data.prepare import EXCERPT, Batch, Candidate, PrepareOptions, candidate, prepare
from llm_core.parallel import map_ordered

LOOSE = FilterOptions(gopher_quality=False, gopher_repetition=False)
TEXT = "The dog went to the river and found that nothing of interest was there to be had. " * 4
PAGE = f"<html lang=en><head><title>T</title></head><body><main><p>{TEXT}</p><p>{TEXT}</p></main></body></html>"


def options(folder: Path, **settings: Any) -> PrepareOptions:
    return PrepareOptions(**{"rules": folder, "filters": LOOSE, "timeout": 60.0, **settings})


def row(text: str, url: str = "http://a.org/", content_type: str = "text/plain", **more: Any) -> dict[str, Any]:
    return {"url": url, "text": text, "content_type": content_type, "group": "g", **more}


def one(text: str, folder: Path, content_type: str = "text/plain", **settings: Any) -> Candidate:
    return candidate((row(text, content_type=content_type), None, options(folder, **settings)))


def crawled(folder: Path, pages: dict[str, bytes]) -> list[dict[str, Any]]:
    """Rows of a crawl whose WARC segment holds these bodies by URL."""
    rows = []
    with open(folder / "segment.warc.gz", "wb") as file:
        writer = WARCWriter(file, gzip=True)
        for url, body in pages.items():
            headers = StatusAndHeaders("200 OK", [("Content-Type", "text/html; charset=utf-8")], protocol="HTTP/1.1")
            rows.append({"url": url, "segment": "segment.warc.gz", "offset": file.tell(), "content_type": "text/html"})
            writer.write_record(writer.create_warc_record(url, "response", io.BytesIO(body), http_headers=headers))
    return rows


HANG = "def extract(soup):\n    return str(sum(range(10 ** 13)))\n"
"""Does not return to the interpreter: no signal handler, no thread could end it."""
CRASH = "def extract(soup):\n    import ctypes\n    ctypes.string_at(0)\n"
KILLED = "def extract(soup):\n    import os\n    os.kill(os.getpid(), 9)\n"


def bad_pages(folder: Path) -> tuple[list[dict[str, Any]], dict[str, str | None]]:
    """Rows, and the reason that each must get by URL."""
    for host, code in {
        "hang.org": HANG,
        "crash.org": CRASH,
        "killed.org": KILLED,
        "raises.org": "def extract(s): 1/0",
    }.items():
        (folder / f"{host}.py").write_text(code)
    pages: dict[str, tuple[bytes, str | None]] = {
        "http://a.org/first": (PAGE.encode(), None),
        "http://hang.org/": (PAGE.encode(), "timeout"),
        "http://a.org/empty": (b"", "no_text"),
        "http://a.org/blank": (b" \n ", "no_text"),
        "http://crash.org/": (PAGE.encode(), "crashed"),
        "http://a.org/deep": (b"<div>" * 20_000 + b"x" + b"</div>" * 20_000, "too_deep"),
        "http://a.org/attributes": (b"<p " + b"a=1 " * 200_000 + b">x", "too_many_attributes"),
        "http://a.org/large": (PAGE.encode() + b"<!--" + b"x" * 2_000_000, "too_large"),
        "http://killed.org/": (PAGE.encode(), "crashed"),
        "http://a.org/pdf": (b"%PDF-1.4 ...", "binary"),
        "http://a.org/jpeg": (b"\xff\xd8\xff\xe0" + bytes(range(200)), "binary"),
        "http://raises.org/": (PAGE.encode(), "rule_error"),
        "http://a.org/noindex": (
            PAGE.replace("<title>", "<meta name=robots content='noindex'><title>").encode(),
            "noindex",
        ),
        "http://a.org/truncated": (PAGE.encode()[:-60], None),
        "http://a.org/latin": (PAGE.replace("dog", "Köter für Größe").encode("latin-1"), None),
        "http://a.org/wide": (PAGE.encode("utf-16"), None),
        "http://a.org/packed": (gzip.compress(PAGE.encode()), None),
        "http://a.org/mixed": (PAGE.replace("dog", "“dog”").encode() + "<p>Straße</p>".encode("latin-1"), None),
        "http://a.org/lost": (PAGE.replace("dog", "d\ufffdg\ufffd\ufffd").encode(), "wrong_encoding"),
        "http://a.org/last": (PAGE.encode(), None),
    }
    rows = crawled(folder, {url: body for url, (body, _) in pages.items()})
    rows.insert(3, {**rows[0], "url": "http://a.org/nowhere", "offset": 10**9})
    rows.insert(4, {**rows[0], "url": "http://a.org/inside", "offset": 5})
    expected = {url: reason for url, (_, reason) in pages.items()}
    return rows, expected | {"http://a.org/nowhere": "unreadable_record", "http://a.org/inside": "unreadable_record"}


def test_every_bad_page_has_its_reason_and_costs_no_other(tmp_path: Path) -> None:
    rows, expected = bad_pages(tmp_path)
    source, found = prepare(Batch("s", rows, options(tmp_path, timeout=8.0), tmp_path))
    assert source == "s"
    assert [item.url for item in found] == [row["url"] for row in rows]
    assert {item.url: item.reason for item in found} == expected
    for item in found:
        if item.reason is None:
            assert "nothing of interest was there" in item.text
            assert item.digest
            assert "\ufffd" not in item.text
        else:
            assert len(item.text) <= EXCERPT
    texts = {item.url: item.text for item in found}
    assert "Köter für Größe" in texts["http://a.org/latin"]
    assert "“dog”" in texts["http://a.org/mixed"]


def test_the_same_in_any_executor(tmp_path: Path) -> None:
    rows, expected = bad_pages(tmp_path)
    rows = [row for row in rows if "hang" not in row["url"]]
    batches = [Batch("s", rows[start : start + 11], options(tmp_path), tmp_path) for start in range(0, len(rows), 11)]
    for pool in (ThreadPoolExecutor(2), ProcessPoolExecutor(1, mp_context=get_context("forkserver"))):
        with pool:
            found = [item for _, items in map_ordered(prepare, batches, workers=2, executor=pool) for item in items]
        assert {item.url: item.reason for item in found} == {row["url"]: expected[row["url"]] for row in rows}


def test_long_plain_text_is_read_whole_and_packed_pages_only_so_far(tmp_path: Path) -> None:
    text = "".join(f"Sentence number {number} of a long book. " for number in range(60_000))
    rows = crawled(tmp_path, {"http://a.org/book": text.encode(), "http://a.org/bomb": gzip.compress(b"<p>x" * 10**7)})
    rows[0]["content_type"] = "text/plain; charset=utf-8"
    _, [book, bomb] = prepare(Batch("s", rows, options(tmp_path), tmp_path))
    assert book.text == text.strip()
    assert bomb.reason == "too_large"


def test_real_pages_that_were_damaged(shared_data: Path, tmp_path: Path) -> None:
    """Every page cut, with bytes changed, doubled into itself, and with tags torn: each comes back with an answer."""
    pages, _ = article_pages(shared_data / "article_extraction")
    rng = random.Random(0)
    damaged: dict[str, bytes] = {}
    for number, page in enumerate(pages.values()):
        data, place = bytearray(page), rng.randrange(len(page))
        if number % 4 == 0:
            del data[place:]
        elif number % 4 == 1:
            for _ in range(200):
                data[rng.randrange(len(data))] = rng.randrange(256)
        elif number % 4 == 2:
            data[place:place] = page[: 1_000_000 - len(page) // 2]
        else:
            data = bytearray(page.replace(b"</div>", b"<div>", rng.randrange(800)).replace(b">", b" ", 50))
        damaged[f"http://a.org/{number}"] = bytes(data)
    _, found = prepare(Batch("s", crawled(tmp_path, damaged), options(tmp_path), tmp_path))
    reasons = [item.reason for item in found]
    assert len(reasons) == 91
    assert set(reasons) <= {None, "no_text", "binary", "too_large", "too_deep", "wrong_encoding", "noindex"}
    assert reasons.count(None) > 60


def test_a_rule_that_cannot_be_used_ends_the_work(tmp_path: Path) -> None:
    (tmp_path / "a.org.yaml").write_text("content: 'p['\n")
    with pytest.raises(BadInput, match="is no CSS selector"):
        prepare(Batch("s", [row(PAGE, content_type="text/html")], options(tmp_path)))


def test_lone_surrogates_and_special_tokens_in_rows(tmp_path: Path) -> None:
    found = one(f"\ud800{TEXT}<|endoftext|><|user|>\udfff", tmp_path)
    assert found.reason is None
    assert found.text == f"{TEXT}<| endoftext|><| user|>"
    assert found.masked == {"special_token": 2}
    _, [sent] = prepare(Batch("s", [row(f"\ud800{TEXT}<|endoftext|><|user|>\udfff")], options(tmp_path)))
    assert sent == found


def test_personal_data_is_masked_and_counted(tmp_path: Path) -> None:
    text = f"Write to jane@acme.org or call +44 20 7946 0958. {TEXT}"
    found = one(text, tmp_path)
    assert found.text.startswith("Write to [EMAIL] or call [PHONE].")
    assert found.masked == {"email": 1, "phone": 1}
    assert one(text, tmp_path, personal=MaskOptions(email=False)).masked == {"phone": 1}
    dropped = one("jane@acme.org", tmp_path, filters=FilterOptions(min_words=5))
    assert (dropped.reason, dropped.text, dropped.masked) == ("too_few_words", "[EMAIL]", {})
    page = PAGE.replace("<title>T", "<title>jane@acme.org")
    assert one(page, tmp_path, content_type="text/html").title == "[EMAIL]"


def test_settings_reach_the_page(tmp_path: Path) -> None:
    noindex = PAGE.replace("<title>", "<meta name=robots content='none'><title>")
    assert one(noindex, tmp_path, content_type="text/html").reason == "noindex"
    assert one(noindex, tmp_path, content_type="text/html", respect_noindex=False).reason is None
    menu = PAGE.replace("<main>", "<nav>All of the menu</nav><main>")
    assert "menu" not in one(menu, tmp_path, content_type="text/html").text
    assert "menu" in one(menu, tmp_path, content_type="text/html", engine="text").text
    assert one(TEXT, tmp_path, characters=CharacterOptions("remove", "lower")).text.startswith("the dog went")
    assert one(TEXT, tmp_path, languages=("de",)).reason == "language"
    assert one(TEXT, tmp_path, languages=("en",)).language == "en"
    assert one(TEXT, tmp_path, languages=("en",), language_threshold=1.0).reason in (None, "language")
    assert one("12 34 56 78 " * 20, tmp_path, languages=("en",)).reason == "language"
    assert one(TEXT, tmp_path).language is None
    assert one(TEXT, tmp_path, record_language=True).language == "en"
    listed = candidate((row(TEXT, licence="CC0", title="Named", date="2020-01-02"), None, options(tmp_path)))
    assert (listed.licence, listed.title, listed.date, listed.group) == ("CC0", "Named", "2020-01-02", "g")


def test_archives_of_other_crawlers_never_crash(shared_data: Path, tmp_path: Path) -> None:
    """Every record of the WARC files, broken and cut ones included, read at its offset and at a wrong one."""
    rows = []
    for path in sorted((shared_data / "warc").rglob("*.warc*")):
        segment = str(path.relative_to(shared_data / "warc"))
        with open(path, "rb") as file:
            offsets = [0]
            with contextlib.suppress(OSError):  # where the archive is broken
                offsets += [record.stream_pos for record in ArchiveIterator(file, parse_http=False)]
        for offset in (*offsets, *(offset + 7 for offset in offsets)):
            rows.append({"url": "http://x.org/", "segment": segment, "offset": offset, "content_type": None})
    assert len(rows) > 50
    _, found = prepare(Batch("s", rows, options(tmp_path), shared_data / "warc"))
    assert len(found) == len(rows)
    assert any(item.reason is None and len(item.text) > 500 for item in found)
    assert {item.reason for item in found} <= {
        None,
        "no_text",
        "unreadable_record",
        "binary",
        "too_few_words",
        "noindex",
    }

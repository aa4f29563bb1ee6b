"""WARC files of every kind of damage: what can be read is read, what cannot is named, nothing ends the reading."""

from __future__ import annotations

import gzip
import random
from pathlib import Path

import pytest
from fastwarc import ArchiveIterator
from warcio.archiveiterator import ArchiveIterator as WarcioIterator

from llm_core.data.sources.archives import Archive, WarcPage, languages_of, member_end

# file: records read, pages, what is said to be wrong
CASES = {
    "cc_whirlwind.warc.gz": (4, 1, []),
    "cc_whirlwind.warc.wat.gz": (2, 0, []),
    "cc_whirlwind.warc.wet.gz": (2, 0, []),
    "dolma_sample-0000.warc.gz": (48, 22, []),
    "resiliparse_clipped.warc.gz": (1, 0, ["cut off: 74,970 of 88,038 bytes at byte 0"]),
    "warcio/bad.arc": (0, 0, ["an ARC file, not a WARC file, at byte 0"]),
    "warcio/example.arc.gz": (0, 0, ["an ARC file, not a WARC file, at byte 0"]),
    "warcio/example-bad-non-chunked.warc.gz": (6, 1, []),
    "warcio/example-trunc.warc": (4, 1, ["Invalid WARC header at byte 1,197"]),
    "warcio/example.warc.gz": (6, 1, []),
}


def read(path: Path) -> tuple[Archive, list[WarcPage]]:
    archive = Archive(path)
    return archive, list(archive.pages())


@pytest.mark.parametrize("name", CASES)
def test_exact_counts_of_real_edge_cases(shared_data: Path, name: str) -> None:
    archive, pages = read(shared_data / "warc" / name)
    assert (archive.records, len(pages), [str(fault) for fault in archive.faults]) == CASES[name]


@pytest.mark.parametrize("name", ["cc_whirlwind.warc.gz", "dolma_sample-0000.warc.gz", "warcio/example.warc.gz"])
def test_the_pages_are_those_that_warcio_reads(shared_data: Path, name: str) -> None:
    """warcio's content_stream() undoes transfer and content encodings, as ours does."""
    with open(shared_data / "warc" / name, "rb") as file:
        theirs = [
            (record.rec_headers.get_header("WARC-Target-URI").strip("<>"), record.content_stream().read())
            for record in WarcioIterator(file)
            if record.rec_type == "response"
        ]
    assert [(page.url, page.body) for page in read(shared_data / "warc" / name)[1]] == theirs


def test_language_and_members_of_a_real_capture(shared_data: Path) -> None:
    path = shared_data / "warc" / "cc_whirlwind.warc.gz"
    archive, (page,) = read(path)
    assert (page.url, page.languages, page.mime) == (
        "https://an.wikipedia.org/wiki/Escopete",
        ("es", "spa"),
        "text/html",
    )
    assert (page.offset, page.end, archive.info_end) == (1023, 18374, 516)
    assert member_end(path, page.offset) == page.end


def test_one_bad_byte_costs_one_capture_at_most(shared_data: Path, tmp_path: Path) -> None:
    """60 files, each with one byte changed somewhere: every page that is given is a page of the whole file."""
    data = (shared_data / "warc" / "dolma_sample-0000.warc.gz").read_bytes()
    pages = read(shared_data / "warc" / "dolma_sample-0000.warc.gz")[1]
    whole = {page.url: (page.body, page.offset) for page in pages}
    choice, path, lost = random.Random(5), tmp_path / "flipped.warc.gz", 0
    for _ in range(60):
        changed = bytearray(data)
        changed[choice.randrange(len(data))] ^= 1 << choice.randrange(8)
        path.write_bytes(changed)
        archive, pages = read(path)
        assert all(whole.get(page.url) == (page.body, page.offset) for page in pages)
        missing = len(whole) - len(pages)
        assert missing <= 1
        assert missing == 0 or archive.faults or archive.refused
        lost += missing
    assert lost > 20, "hardly any of the changes hit a page: the test tests nothing"


def test_a_file_that_breaks_off_gives_what_came_before(shared_data: Path, tmp_path: Path) -> None:
    data = (shared_data / "warc" / "dolma_sample-0000.warc.gz").read_bytes()
    pages = read(shared_data / "warc" / "dolma_sample-0000.warc.gz")[1]
    third = pages[2]
    assert third.end is not None
    path = tmp_path / "cut.warc.gz"
    for cut, count in ((third.end, 3), (third.end - 4, 3), (third.end - 2_000, 2)):
        path.write_bytes(data[:cut])
        archive, found = read(path)
        assert [page.body for page in found] == [page.body for page in pages[:count]]
        assert len(archive.faults) == (0 if cut == third.end else 1)
    path.write_bytes(gzip.decompress(data)[:200_000])
    archive, found = read(path)
    assert len(archive.faults) == 1
    assert [page.body for page in found] == [page.body for page in pages[: len(found)]] != []


def test_what_a_plain_reader_lets_pass(shared_data: Path) -> None:
    """The reason for comparing lengths: fastwarc gives the clipped record as if it were whole."""
    with open(shared_data / "warc" / "resiliparse_clipped.warc.gz", "rb") as file:
        record = next(iter(ArchiveIterator(file)))
        assert len(record.reader.read()) == 74_970 < record.content_length == 88_038


def test_too_large_undecodable_and_unwanted_are_counted(shared_data: Path, tmp_path: Path) -> None:
    path = shared_data / "warc" / "dolma_sample-0000.warc.gz"
    sizes = sorted(len(page.body) for page in read(path)[1])
    archive = Archive(path, max_bytes=sizes[10])
    assert len(list(archive.pages())) == 11
    assert archive.refused == {"too_large": 11}
    archive = Archive(path, admit=lambda page: None if "soldaini" in page.url else "host")
    assert len(list(archive.pages())) + archive.refused["host"] == 22


def response(url: str, encoding: str, body: bytes) -> bytes:
    block = f"HTTP/1.1 200 OK\r\n{encoding}Content-Type: text/html\r\n\r\n".encode() + body
    head = f"WARC/1.1\r\nWARC-Type: response\r\nWARC-Target-URI: {url}\r\n"
    head += f"Content-Type: application/http; msgtype=response\r\nContent-Length: {len(block)}\r\n\r\n"
    return head.encode() + block + b"\r\n\r\n"


@pytest.mark.parametrize("packed", [False, True])
def test_encoded_bodies(tmp_path: Path, packed: bool) -> None:
    """Decoded, or counted where that is not possible; a bomb stops at the limit; a torn one is no page."""
    gz, chunked = "Content-Encoding: gzip\r\n", "Transfer-Encoding: chunked\r\n"
    records = [
        response("http://a.test/1", gz, gzip.compress(b"one " * 50)),
        response("http://a.test/2", gz, b"no gzip at all, and longer than it should be"),
        response("http://a.test/3", chunked, b"5\r\nthree\r\n0\r\n\r\n"),
        response("http://a.test/4", gz, gzip.compress(bytes(50_000_000))),
        response("http://a.test/5", "", b"five"),
        response("http://a.test/6", gz, gzip.compress(bytes(range(256)) * 40)),
    ]
    pack = gzip.compress if packed else bytes
    path = tmp_path / "x.warc"
    path.write_bytes(b"".join(map(pack, records)))
    archive = Archive(path, max_bytes=1_000_000)
    found = {page.url[-1]: page.body for page in archive.pages()}
    assert (found.pop("1"), found.pop("3"), found.pop("5"), len(found.pop("6"))) == (
        b"one " * 50,
        b"three",
        b"five",
        10_240,
    )
    assert len(found) + archive.fault_count == 1
    assert archive.refused == {"too_large": 1}
    path.write_bytes(b"".join(map(pack, records))[:-300])
    archive = Archive(path, max_bytes=1_000_000)
    assert "http://a.test/6" not in [page.url for page in archive.pages()]
    assert "cut off" in str(archive.faults[-1])


@pytest.mark.parametrize("size", [0, 1, 3, 100])
def test_files_that_are_no_archives(tmp_path: Path, size: int) -> None:
    for data in (b"\x1f\x8b\x08" + bytes(size), b"x" * size, bytes(size)):
        (tmp_path / "x.warc.gz").write_bytes(data)
        assert read(tmp_path / "x.warc.gz")[1] == []


def test_languages_of_metadata() -> None:
    assert languages_of(b'languages-cld2: {"languages":[{"code":"en","code-iso-639-3":"eng"},{"code":"de"}]}\r\n') == (
        "en",
        "eng",
    )
    for odd in (b"", b"languages-cld2: {", b"languages-cld2: []", b'languages-cld2: {"languages":[]}', b"x: 1"):
        assert languages_of(odd) == ()

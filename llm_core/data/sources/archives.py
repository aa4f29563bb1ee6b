"""Pages in WARC files: fastwarc reads; what it lets pass is caught here.

fastwarc gives a record that was cut off as if it were whole, and stops for good at the first broken one. So every body
is compared with the length that its record announces, and reading goes on behind a broken place at the next one where a
record begins. What was wrong is kept as a list, and never ends the reading.
"""

from __future__ import annotations

import json
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

from fastwarc import ArchiveIterator, WarcRecordType

GZIP = b"\x1f\x8b\x08"
MAX_FAULTS = 100
"""Faults of one file that are kept with their place; further ones are only counted."""
MAX_METADATA_BYTES = 1_000_000
"""Bytes of a metadata record that are looked at; Common Crawl's have a few hundred."""
_BLOCK = 1 << 16
_LANGUAGES = b"languages-cld2:"
_CODE = re.compile(r"[a-z]{2,3}")


@dataclass(frozen=True, slots=True)
class Fault:
    """A place in a file that could not be read, offset in bytes."""

    offset: int
    problem: str

    def __str__(self) -> str:
        return f"{self.problem} at byte {self.offset:,}"


class _Again(OSError):
    """A record was left in its middle: reading begins again at the next one."""


class WarcPage:
    """A response with its decoded body. What its headers say is read when it is asked for: a look at one header costs
    a microsecond, and ten for every page would be a fifth of the reading.

    `end` is where its gzip member ends; None if the record has no whole member of its own or its body was encoded, so
    that the file's bytes cannot be taken over as they are. `metadata`: the record that follows, if it is of that type.
    """

    __slots__ = ("_http", "_record", "body", "encoded", "end", "metadata", "offset", "record_id", "status")

    def __init__(self, record: Any, http: Any, status: int, offset: int) -> None:
        self._record, self._http, self.status, self.offset = record.headers, http, status, offset
        self.record_id: str = record.record_id or ""
        self.body = b""
        self.encoded = False
        self.end: int | None = None
        self.metadata = b""

    @property
    def url(self) -> str:
        """The page's URL; WARC 1.0's grammar puts it between < and >, by mistake, and some writers obey."""
        return (self._record.get("WARC-Target-URI") or "").strip("<>")

    @property
    def mime(self) -> str:
        """What Common Crawl identified, else what the server said, without parameters, in lower case."""
        said = self._record.get("WARC-Identified-Payload-Type") or self.content_type or ""
        return said.partition(";")[0].strip().lower()

    @property
    def date(self) -> str:
        """WARC-Date: when the page was fetched."""
        return self._record.get("WARC-Date") or ""

    @property
    def content_type(self) -> str | None:
        """The server's Content-Type."""
        return self.header("Content-Type")

    @property
    def languages(self) -> tuple[str, ...]:
        """Codes of the main language, ISO 639-1 and 639-3, by Common Crawl, else by the server; empty if by nobody."""
        return languages_of(self.metadata) or _codes(self.header("Content-Language"))

    def header(self, name: str) -> str | None:
        """One of the server's headers."""
        value: str | None = self._http.get(name)
        return value

    def encodings(self) -> list[tuple[str, str]]:
        """The encodings that the body has, as header names and values."""
        if b"ncoding" not in b"".join(self._http.keys_bytes()).lower():
            return []
        named = [(name, self.header(name)) for name in ("Content-Encoding", "Transfer-Encoding")]
        return [(name, value) for name, value in named if value and value.strip().lower() != "identity"]


Admit = Callable[[WarcPage], str | None]


class Archive:
    """One WARC file, read once from its start; what is counted here grows as `pages` goes on.

    `records` of any type, `refused` responses by reason, `faults` with their places (the first hundred) and their
    number. `info_end` is where the file's first record ends, if that is a warcinfo with a gzip member of its own.
    """

    def __init__(self, path: Path, *, max_bytes: int = 100_000_000, admit: Admit | None = None) -> None:
        """`admit(page)`, asked before the body is read, gives the reason why a response is not wanted, or None."""
        self.path = path
        self.records = 0
        self.refused: Counter[str] = Counter()
        self.faults: list[Fault] = []
        self.fault_count = 0
        self.info_end: int | None = None
        self._max_bytes = max_bytes
        self._admit = admit
        self._at = 0
        with open(path, "rb") as file:
            head = file.read(4096)
            self._size = file.seek(0, 2)
            file.seek(max(0, self._size - 4))
            self._tail = file.read()
        self._packed, self._head = head.startswith(GZIP), head_of(head)

    def pages(self) -> Iterator[WarcPage]:
        """The responses that are admitted and whole, in the order of the file."""
        start: int | None = 0
        while start is not None:
            self._at = start
            try:
                yield from self._run(start)
                return
            except _Again:
                start = self._next_record(self._at + 1)
                if start is None and self._packed and member_end(self.path, self._at) != self._size:
                    self._broken(self._at, "no record can be found behind what stands")
                continue
            except OSError as error:
                self._broken(self._at, self._problem(error))
            start = self._next_record(self._at + 1)

    def _run(self, start: int) -> Iterator[WarcPage]:
        response, metadata = WarcRecordType.response, WarcRecordType.metadata
        waiting: WarcPage | None = None
        previous = -1
        with open(self.path, "rb") as file:
            file.seek(start)
            try:
                for record in ArchiveIterator(file, record_types=WarcRecordType.any_type, parse_http=False):
                    self.records += 1
                    self._at = offset = record.stream_pos
                    kind = record.record_type
                    if waiting is not None:
                        # A metadata record that follows is the response's; it says which language Common Crawl saw.
                        if kind is metadata:
                            waiting.metadata = record.reader.read(MAX_METADATA_BYTES)
                        if self._packed and previous < offset and not waiting.encoded:
                            waiting.end = offset
                        yield waiting
                        waiting = None
                    elif previous == 0 and self._packed and self.records == 2:
                        self.info_end = offset
                    if kind is response:
                        waiting = self._page(record, offset)
                        if waiting is not None and offset == previous:
                            waiting.encoded = True  # it shares its member with the record before it
                    previous = offset
            except OSError:
                if waiting is not None:
                    yield from self._before_a_break(waiting)
                raise
        if waiting is not None:
            yield from self._last(waiting)

    def _last(self, page: WarcPage) -> Iterator[WarcPage]:
        """The last page, after which no record tells whether it is whole and where it ends."""
        end = member_end(self.path, page.offset) if self._packed else None
        whole = end is not None if self._packed else self._tail == b"\r\n\r\n"
        if not whole:
            self._broken(page.offset, "the file's end is cut off")
        if whole or not page.encoded:  # the length of a body that was encoded could not be compared
            page.end = None if page.encoded else end
            yield page

    def _before_a_break(self, page: WarcPage) -> Iterator[WarcPage]:
        """A page whose following record cannot be read: is it whole itself?"""
        end = member_end(self.path, page.offset) if self._packed else None
        if end is not None or not self._packed:
            page.end = None if page.encoded else end
            self._at = end if end is not None else self._at
            yield page

    def _page(self, record: Any, offset: int) -> WarcPage | None:
        if not record.is_http:
            self.refused["no_http"] += 1
            return None
        record.parse_http(auto_decode="all")
        http = record.http_headers
        status = http.status_code if http is not None else None
        if status is None:
            self.refused["no_http"] += 1
            return None
        page = WarcPage(record, http, status, offset)
        reason = self._admit(page) if self._admit else None
        if reason is None and record.content_length > self._max_bytes:
            reason = "too_large"
        if reason is not None:
            self.refused[reason] += 1
            return None
        length = record.content_length
        try:
            page.body = record.reader.read(length + 1)
            # Where lengths differ the body was encoded or is cut off; asking each page's headers would cost more.
            if len(page.body) != length:
                page.encoded = bool(page.encodings())
                if len(page.body) > length:
                    page.body += record.reader.read(self._max_bytes)
        except OSError as error:
            if not page.encodings():
                raise
            self._broken(offset, f"a body that cannot be decoded ({error})")
            raise _Again from error
        if len(page.body) > self._max_bytes:
            self.refused["too_large"] += 1
            raise _Again
        if len(page.body) != length and not page.encoded:
            self._broken(offset, f"cut off: {len(page.body):,} of {length:,} bytes")
            return None
        return page

    def _broken(self, offset: int, problem: str) -> None:
        self.fault_count += 1
        if len(self.faults) < MAX_FAULTS:
            self.faults.append(Fault(offset, problem))

    def _problem(self, error: OSError) -> str:
        if self._at == 0 and self._head.startswith(b"filedesc:"):
            return "an ARC file, not a WARC file,"
        return str(error) or type(error).__name__

    def _next_record(self, position: int) -> int | None:
        """The next place at or behind `position` where a record begins; None if there is none."""
        mark = GZIP if self._packed else b"\r\nWARC/1."
        with open(self.path, "rb") as file:
            if file.seek(0, 2) == 0:
                return None
            with mmap(file.fileno(), 0, access=ACCESS_READ) as data:
                while (found := data.find(mark, position)) >= 0:
                    if not self._packed:
                        return found + 2
                    if head_of(data[found : found + 4096]).startswith(b"WARC/"):
                        return found
                    position = found + 1
        return None


def head_of(data: bytes) -> bytes:
    """The first bytes, decompressed if a gzip member begins there."""
    try:
        return zlib.decompressobj(31).decompress(data[:4096], 64) if data.startswith(GZIP) else data[:64]
    except zlib.error:
        return b""


def member_end(path: Path, offset: int) -> int | None:
    """Where the gzip member that begins at `offset` ends; None if it is cut off or its checksum is wrong."""
    inflater = zlib.decompressobj(31)
    with open(path, "rb") as file:
        file.seek(offset)
        while block := file.read(_BLOCK):
            try:
                inflater.decompress(block)
            except zlib.error:
                return None
            if inflater.eof:
                return file.tell() - len(inflater.unused_data)
    return None


def languages_of(metadata: bytes) -> tuple[str, ...]:
    """Codes of the main language in Common Crawl's metadata record: ISO 639-1, if there is one, and 639-3."""
    place = metadata.find(_LANGUAGES)
    if place < 0:
        return ()
    line = metadata[place + len(_LANGUAGES) :].partition(b"\n")[0]
    try:
        found = json.loads(line).get("languages") or []
        return tuple(code for code in (found[0].get("code"), found[0].get("code-iso-639-3")) if code) if found else ()
    except (ValueError, AttributeError, TypeError, KeyError):
        return ()


def _codes(header: str | None) -> tuple[str, ...]:
    """The languages that a Content-Language header names, without their regions: "en-US, de" gives en and de."""
    return (
        tuple(_CODE.findall(" ".join(part.partition("-")[0] for part in header.lower().split(",")))) if header else ()
    )

"""WARC segments: written as *.open, renamed when closed; one gzip member a record, so that a torn tail can be cut."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

SEGMENT_BYTES = 500_000_000
_DROPPED = frozenset({"content-encoding", "transfer-encoding", "content-length", "set-cookie"})
_BLOCK = 1 << 20


class SegmentWriter:
    """Appends responses to numbered segments in a folder. `recover` first mends what a killed writer left."""

    def __init__(self, folder: Path, software: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._software = software
        self._file: BinaryIO | None = None
        self._open_path = folder / "none"
        recover(folder)

    def write(
        self, url: str, status: str, headers: Sequence[tuple[str, str]], body: bytes, date: str
    ) -> tuple[str, int]:
        """Append a response record; returns the segment's final name and the record's offset in bytes.

        `body` is decoded: headers that speak of an encoding are dropped, or readers would decode it twice.
        """
        file = self._current()
        offset = file.tell()
        kept = [(name, value) for name, value in headers if name.lower() not in _DROPPED]
        http = StatusAndHeaders(status, [*kept, ("Content-Length", str(len(body)))], protocol="HTTP/1.1")
        record = self._writer.create_warc_record(
            url, "response", payload=BytesIO(body), http_headers=http, warc_headers_dict={"WARC-Date": date}
        )
        self._writer.write_record(record)
        name = self._open_path.name.removesuffix(".open")
        if file.tell() >= SEGMENT_BYTES:
            self.close()
        return name, offset

    def flush(self) -> None:
        """Hand everything written so far to the operating system, which keeps it when this process is killed."""
        if self._file is not None:
            self._file.flush()

    def close(self) -> None:
        """Close the segment and give it its final name."""
        if self._file is not None:
            self._file.close()
            self._file = None
            self._open_path.rename(self._open_path.with_suffix(""))

    def _current(self) -> BinaryIO:
        if self._file is None:
            number = 1 + max((int(path.name[:5]) for path in self._folder.glob("*.warc.gz")), default=-1)
            name = f"{number:05d}.warc.gz"
            self._open_path = self._folder / f"{name}.open"
            self._file = open(self._open_path, "wb")  # noqa: SIM115 - held open until `close`
            self._writer = WARCWriter(self._file, gzip=True)
            self._writer.write_record(self._writer.create_warcinfo_record(name, {"software": self._software}))
        return self._file


def recover(folder: Path) -> None:
    """Close the segments that a killed writer left open: cut each to its last whole record, or remove an empty one."""
    for path in sorted(folder.glob("*.warc.gz.open")):
        whole = whole_members(path)
        if whole:
            with open(path, "r+b") as file:
                file.truncate(whole)
            path.rename(path.with_suffix(""))
        else:
            path.unlink()


def whole_members(path: Path) -> int:
    """Bytes of a file that consist of complete gzip members."""
    end = position = 0
    inflater = zlib.decompressobj(16 + zlib.MAX_WBITS)
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            while block:
                try:
                    inflater.decompress(block)
                except zlib.error:
                    return end
                position += len(block) - len(inflater.unused_data)
                block = inflater.unused_data
                if inflater.eof:
                    end = position
                    inflater = zlib.decompressobj(16 + zlib.MAX_WBITS)
    return end


def header_pairs(headers: Mapping[bytes, Sequence[bytes]]) -> list[tuple[str, str]]:
    """Header names and values as text, in the order they came."""
    return [(name.decode("latin-1"), value.decode("latin-1")) for name, values in headers.items() for value in values]

"""Kept records of a WARC file and their rows in pages.parquet, in the shape of the web crawl's store."""

from __future__ import annotations

import gzip
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import xxhash
from warcio.recordbuilder import RecordBuilder
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from llm_core.data.sources.archives import GZIP, Archive, WarcPage, head_of
from llm_core.data.web.store import PAGES

SCHEMA = pa.unify_schemas(
    [
        PAGES,
        pa.schema([(name, pa.string()) for name in ("type", "source", "language")]),
        pa.schema([("source_offset", pa.int64())]),
    ]
)


def row_of(page: WarcPage, segment: str, offset: int, source: str) -> dict[str, Any]:
    """A page's row in pages.parquet. `source` is the WARC file it was fetched from."""
    return {
        "url": page.url,
        "digest": xxhash.xxh3_128_hexdigest(page.body),
        "content_type": page.content_type or page.mime,
        "type": page.mime,
        "segment": segment,
        "offset": offset,
        "fetched": page.date,
        "etag": page.header("ETag"),
        "last_modified": page.header("Last-Modified"),
        "robots": page.header("X-Robots-Tag"),
        "status": page.status,
        "bytes": len(page.body),
        "source": source,
        "source_offset": page.offset,
        "language": page.languages[0] if page.languages else None,
    }


class Segment:
    """The kept records of one WARC file: members copied as they are, or written anew where that is not possible."""

    def __init__(self, path: Path, archive: Archive) -> None:
        self._path, self._archive = path, archive
        self._partial = path.with_suffix(".open")

    def __enter__(self) -> Segment:
        self._file = open(self._partial, "wb")
        self._source = open(self._archive.path, "rb")
        self._builder = RecordBuilder()
        self._begun = False
        return self

    def __exit__(self, kind: object, *rest: object) -> None:
        self._source.close()
        self._file.close()
        if kind is None:
            self._partial.replace(self._path)
        else:
            self._partial.unlink()

    def add(self, page: WarcPage) -> int:
        """Append a page's record; returns its offset in bytes."""
        if not self._begun:
            self._begun = True
            if self._archive.info_end is not None:
                self._take(0, self._archive.info_end)
        offset = self._file.tell()
        # An encoded body may happen to have the length of the decoded one, so its headers are asked here once more.
        if page.end is None or page.encodings() or not self._take(page.offset, page.end):
            self._write(page)
        return offset

    def _take(self, start: int, end: int) -> bool:
        """Copy a gzip member of the source, if these bytes are one that holds a record."""
        self._source.seek(start)
        data = self._source.read(end - start)
        following = self._source.read(len(GZIP))
        if following not in (GZIP, b"") or not head_of(data).startswith(b"WARC/"):
            return False
        self._file.write(data)
        return True

    def _write(self, page: WarcPage) -> None:
        named = [
            ("Content-Type", page.content_type),
            ("ETag", page.header("ETag")),
            ("Last-Modified", page.header("Last-Modified")),
        ]
        named += [("X-Robots-Tag", page.header("X-Robots-Tag")), ("Content-Length", str(len(page.body)))]
        http = StatusAndHeaders(f"{page.status} OK", [(n, v) for n, v in named if v], protocol="HTTP/1.1")
        headers = {"WARC-Date": page.date, "WARC-Record-ID": page.record_id}
        record = self._builder.create_warc_record(
            page.url, "response", payload=BytesIO(page.body), http_headers=http, warc_headers_dict=headers
        )
        buffer = BytesIO()
        WARCWriter(buffer, gzip=False).write_record(record)
        self._file.write(gzip.compress(buffer.getvalue(), 6, mtime=0))  # warcio's level 9 takes five times as long

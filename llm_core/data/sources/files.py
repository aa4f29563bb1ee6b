"""Files as a source, of this machine or of a store.

html, txt and md are one document each; jsonl, json and parquet hold rows, warc pages.

Every one may be compressed (.gz, .zst). A malformed row ends the run with its file and line, because a run that goes on
would lose an unknown part; a file that cannot be read as a whole is counted, named in the report, and left out. A file
of a store is copied to a temporary file while it is read, one at a time.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from llm_core.contract import BadInput
from llm_core.data.extract import decode
from llm_core.data.packed import whole
from llm_core.data.sources.archives import Archive
from llm_core.data.sources.rows import Columns, Row, shape
from llm_core.storage.places import is_url, place_of, told

WHOLE = {".txt": "text/plain", ".md": "text/markdown", ".html": "text/html", ".htm": "text/html"}
ROWS = frozenset({".jsonl", ".ndjson", ".json", ".parquet"})
ARCHIVES = frozenset({".warc", ".arc"})
PACKED = (".gz", ".zst")
KINDS = "html, txt, md, jsonl, json, parquet or warc, each also as .gz or .zst"
MAX_NAMED = 1_000
"""Unreadable files that are named; further ones are only counted."""
MAX_LINE_BYTES = 256_000_000
"""Bytes of one line of jsonl after decompression."""
MAX_ARRAY_BYTES = 4_000_000_000
"""Bytes of a json file, or of a packed Parquet file, after decompression: these are read as a whole."""
_PROBE = 1_000


@dataclass(frozen=True, slots=True)
class FilesOptions:
    """Which files, and what they hold. `source` is the source's name, for messages; `max_bytes` is for whole files."""

    source: str
    paths: tuple[str, ...]
    holds: str = "text"
    columns: Columns = field(default_factory=Columns)
    max_bytes: int = 50_000_000


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file by the name it is known by, a path or a URL; `version` changes with its bytes."""

    shown: str
    version: str = field(compare=False)
    here: Path = field(compare=False, default=Path())
    """Where its bytes are on this machine."""

    def __str__(self) -> str:
        return self.shown

    @property
    def name(self) -> str:
        """Its name in its folder."""
        return self.shown.rpartition("/")[2]

    @contextmanager
    def fetched(self) -> Iterator[SourceFile]:
        """The file with its bytes on this machine."""
        if not is_url(self.shown):
            yield self
            return
        place, name = place_of(self.shown)
        with tempfile.TemporaryDirectory(prefix="groundup-file-") as folder:
            path = Path(folder, self.name)
            place.fetch(name, path)
            yield SourceFile(self.shown, self.version, path)


class FileRows:
    """Raw rows of all files, in the order of their names: a `Resumable`."""

    def __init__(self, options: FilesOptions) -> None:
        """Find the files. Raises `BadInput` naming the path that matches nothing."""
        self.options = options
        self.skipped: Counter[str] = Counter()
        self.unreadable: list[dict[str, str | float]] = []
        self._files, self._ignored = find(options.paths, options.source)
        if options.holds != "text":
            self._ignored += [path for path in self._files if suffix(path) not in ROWS]
            self._files = [path for path in self._files if suffix(path) in ROWS]
        self._file, self._row = 0, 0

    @property
    def facts(self) -> dict[str, Any]:
        """How many files are read, and which types lie beside them unread."""
        ignored = Counter(Path(file.name).suffix.lower() or "no suffix" for file in self._ignored)
        return {"files": len(self._files), "ignored files": dict(sorted(ignored.items()))}

    @property
    def key(self) -> str:
        """The options with names, sizes and dates of the files."""
        hasher = xxhash.xxh3_128()
        for file in self._files:
            hasher.update(f"{file}\0{file.version}\0".encode(errors="replace"))
        return json.dumps([asdict(self.options), hasher.hexdigest()])

    def state(self) -> Any:
        """The file and the row in it, and what could not be read so far."""
        return {"file": self._file, "row": self._row, "unreadable": list(self.unreadable)}

    def rows(self, state: Any) -> Iterator[Row]:
        """Raw rows behind `state`. Raises `BadInput` naming the file and line of a malformed row."""
        start = state or {"file": 0, "row": 0, "unreadable": []}
        self.unreadable = list(start["unreadable"])
        for number in range(start["file"], len(self._files)):
            seen = start["row"] if number == start["file"] else 0
            self._file, self._row = number, 0
            with self._files[number].fetched() as file:
                yield from self._rows_of(file, seen)

    def _rows_of(self, path: SourceFile, seen: int) -> Iterator[Row]:
        if suffix(path) in ROWS:
            yield from shape(
                self._behind(self._table(path), seen),
                self.options.holds,
                self.options.columns,
                place=lambda: f"{path}, {_unit(path)} {self._row}",
                skipped=self.skipped,
            )
        else:
            yield from self._behind(self._pages(path) if suffix(path) in ARCHIVES else self._whole(path), seen)

    def _behind(self, rows: Iterator[Row], seen: int) -> Iterator[Row]:
        """The rows after the line or row `seen`."""
        for row in rows:
            if self._row > seen:
                yield row

    def _table(self, path: SourceFile) -> Iterator[Row]:
        kind = suffix(path)
        try:
            if kind == ".parquet":
                yield from self._parquet(path)
            elif kind == ".json":
                yield from self._json_array(path)
            else:
                yield from self._json_lines(path)
        except (OSError, EOFError, zlib.error, pa.ArrowException) as error:
            raise BadInput(f"{path}, {_unit(path)} {self._row + 1}: cannot be read ({error})") from error

    def _json_lines(self, path: SourceFile) -> Iterator[Row]:
        with opened(path.here) as file:
            for self._row, line in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES + 1), b""), 1):
                if len(line) > MAX_LINE_BYTES:
                    raise BadInput(f"{path}, line {self._row}: longer than {MAX_LINE_BYTES:,} bytes")
                if line.strip():
                    yield _object(line, f"{path}, line {self._row}")

    def _json_array(self, path: SourceFile) -> Iterator[Row]:
        with opened(path.here) as file:
            try:
                values = json.loads(whole(file, MAX_ARRAY_BYTES))
            except (ValueError, RecursionError) as error:
                raise BadInput(f"{path}: no JSON ({error})") from error
        if not isinstance(values, list):
            raise BadInput(f"{path}: an array of objects is needed, not {type(values).__name__}")
        for self._row, value in enumerate(values, 1):
            if not isinstance(value, dict):
                raise BadInput(f"{path}, item {self._row}: a JSON object is needed, not {type(value).__name__}")
            yield value

    def _parquet(self, path: SourceFile) -> Iterator[Row]:
        packed = path.name.lower().endswith(PACKED)
        with (
            opened(path.here) as handle,
            pq.ParquetFile(pa.BufferReader(whole(handle, MAX_ARRAY_BYTES)) if packed else path.here) as file,
        ):
            for batch in file.iter_batches(1_000):
                for row in batch.to_pylist():
                    self._row += 1
                    yield row

    def _whole(self, path: SourceFile) -> Iterator[Row]:
        """A file as one document; one that cannot be read is counted."""
        self._row = 1
        limit = self.options.max_bytes
        try:
            with opened(path.here) as file:
                data = file.read(limit + 1)
        except (OSError, EOFError, zlib.error, pa.ArrowException) as error:
            self._leave_out(path, str(error) or type(error).__name__)
            return
        text = "" if len(data) > limit else decode(data)
        if len(data) > limit:
            self._leave_out(path, f"larger than max_bytes, {limit}")
        elif "\0" in text[:_PROBE]:
            self._leave_out(path, "binary, not text")
        else:
            kind = WHOLE.get(suffix(path), "text/plain")
            title = None if kind == "text/html" else Path(_unpacked(path.name)).stem
            yield {"url": path.shown, "title": title, "text": text, "content_type": kind}

    def _pages(self, path: SourceFile) -> Iterator[Row]:
        """The responses in a WARC file; its broken records are counted."""
        archive = Archive(path.here, max_bytes=self.options.max_bytes)
        for page in archive.pages():
            self._row += 1
            if page.status == 200:
                yield {"url": page.url, "text": decode(page.body), "content_type": page.content_type or page.mime}
            else:
                self.skipped["status"] += 1
        for fault in archive.faults:
            self._leave_out(path, str(fault), archive.records)
        if archive.faults == [] and not self._row:
            self._leave_out(path, "no response records", archive.records)

    def _leave_out(self, path: SourceFile, problem: str, records: int = 0) -> None:
        self.skipped["unreadable"] += 1
        if len(self.unreadable) < MAX_NAMED:
            self.unreadable.append({"file": path.shown, "problem": problem, "records": records})


def _object(line: bytes, place: str) -> Mapping[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{place}: no JSON ({error})") from error
    if not isinstance(row, dict):
        raise BadInput(f"{place}: a JSON object is needed, not {type(row).__name__}")
    return row


def _unit(path: SourceFile) -> str:
    return {".jsonl": "line", ".ndjson": "line", ".json": "item"}.get(suffix(path), "row")


def _unpacked(name: str) -> str:
    lower = name.lower()
    return name[: lower.rindex(".")] if lower.endswith(PACKED) else name


def suffix(path: Path | SourceFile) -> str:
    """What a file holds by its name, in lower case: .html for page.HTML.gz."""
    return Path(_unpacked(path.name)).suffix.lower()


def opened(path: Path) -> BinaryIO:
    """A file's bytes, decompressed on the way."""
    name = path.name.lower()
    if name.endswith(".gz"):
        return cast(BinaryIO, gzip.open(path, "rb"))
    if name.endswith(".zst"):
        return cast(BinaryIO, io.BufferedReader(pa.input_stream(str(path), compression="zstd")))
    return open(path, "rb")


def find(patterns: Iterable[str], source: str = "files") -> tuple[list[SourceFile], list[SourceFile]]:
    """(files of known types that the patterns name, other files there), each once, sorted.

    A file that is named itself, not found in a folder or by a pattern, is read whatever its type, as plain text if the
    type is unknown. Raises `BadInput` naming a pattern that matches nothing or a folder that cannot be listed.
    """
    found: set[SourceFile] = set()
    ignored: set[SourceFile] = set()
    for pattern in patterns:
        if not is_url(pattern) and Path(pattern).is_file():
            found.add(_on_disk(Path(pattern)))
            continue
        present = list(_in_store(pattern) if is_url(pattern) else _matching(Path(pattern)))
        if [file.shown for file in present] == [pattern]:
            found.add(present[0])
            continue
        known = {p for p in present if suffix(p) in WHOLE or suffix(p) in ROWS or suffix(p) in ARCHIVES}
        if not known:
            raise BadInput(f"acquire.sources: {source!r}: paths: {pattern!r} matches no file of type {KINDS}")
        found |= known
        ignored |= set(present) - known
    order = lambda file: file.shown.split("/")  # noqa: E731  (folder by folder)
    return sorted(found, key=order), sorted(ignored - found, key=order)


def _on_disk(path: Path) -> SourceFile:
    known = path.stat()
    return SourceFile(path.as_posix(), f"{known.st_size}\0{known.st_mtime_ns}", path)


def _matching(path: Path) -> Iterator[SourceFile]:
    root = Path(path.anchor) if path.is_absolute() else Path()
    present = _inside(path) if path.is_dir() else [p for p in root.glob(str(path.relative_to(root))) if p.is_file()]
    return map(_on_disk, present)


def _in_store(pattern: str) -> Iterator[SourceFile]:
    """The file, the files of a folder, or those that a pattern names, in a store."""
    scheme = pattern.partition("://")[0]
    with told(pattern) as store:
        bare = store._strip_protocol(pattern)
        there = store.glob(bare, detail=True) if any(mark in bare for mark in "*?[") else store.find(bare, detail=True)
    for name, about in there.items():
        if about["type"] == "file":
            version = about.get("ETag") or about.get("etag") or about.get("mtime") or about.get("created")
            yield SourceFile(f"{scheme}://{name}", f"{about['size']}\0{version}")


def _inside(folder: Path) -> list[Path]:
    def refuse(error: OSError) -> None:
        raise BadInput(f"{error.filename}: the folder cannot be listed ({error.strerror})")

    walk = os.walk(folder, onerror=refuse)
    return [Path(place) / name for place, _, names in walk for name in names if (Path(place) / name).is_file()]

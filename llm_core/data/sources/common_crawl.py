"""Common Crawl: the WARC files that a listing names, filtered, file by file.

What is kept stands in the shape of the web crawl's store, a segment and a table of pages for each WARC file, so that
`clean` reads it unchanged. A kept record is the very gzip member of Common Crawl's file, copied without compressing it
anew: its digests stay checkable and copying costs nothing. Linking whole files instead was rejected: a filter often
keeps a hundredth of a file, and a file of one gigabyte that was downloaded can then be deleted.

The store outlives the run: a file is done when its note stands beside its segment, and a run that is killed, or that
asks for more files, goes on with the next one.
"""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash
from filelock import FileLock

from llm_core.contract import BadInput
from llm_core.data.packed import gunzipped
from llm_core.data.sources.archives import GZIP, Archive, WarcPage
from llm_core.data.sources.download import Ahead, DownloadFailed, Patience, client, download
from llm_core.data.sources.parts import Gathered
from llm_core.data.sources.reach import reachable
from llm_core.data.sources.segments import SCHEMA, Segment, row_of
from llm_core.data.web.store import link_or_copy
from llm_core.sealed import read_sealed, write_sealed

TELL_PAGES = 200
Tell = Callable[[int, dict[str, str | float]], None]


@dataclass(frozen=True, slots=True)
class CrawlSelection:
    """Which files of which crawl, and which of their pages. `files` and `pages` are limits; None takes all."""

    source: str
    prefix: str
    listing: str
    files: int | None = None
    pages: int | None = None
    hosts: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()
    mime: tuple[str, ...] = ()
    max_bytes: int = 5_000_000
    downloads: int = 2
    patience: Patience = field(default_factory=Patience)

    @property
    def online(self) -> bool:
        """Whether the prefix is a URL rather than a folder."""
        return self.prefix.startswith(("http://", "https://"))

    @property
    def key(self) -> str:
        """Names what a file's kept pages depend on."""
        values = [
            self.prefix,
            self.listing,
            sorted(self.hosts),
            sorted(self.languages),
            sorted(self.mime),
            self.max_bytes,
        ]
        return xxhash.xxh3_64_hexdigest(json.dumps(values).encode())

    def admit(self, page: WarcPage) -> str | None:
        """Why a response is not wanted by its status, type or host; None if it is."""
        if page.status != 200:
            return "status"
        if self.mime and page.mime not in self.mime:
            return "mime"
        return None if not self.hosts or on_hosts(page.url, self.hosts) else "host"

    def admits_language(self, codes: tuple[str, ...]) -> bool:
        """Whether a page whose language has these codes is wanted; one that nobody judged is."""
        return not self.languages or not codes or not set(self.languages).isdisjoint(codes)


def on_hosts(url: str, hosts: tuple[str, ...]) -> bool:
    """Whether a URL's host is one of `hosts`, or, for one that begins with a dot, that host or below it."""
    try:
        host = (urlsplit(url).hostname or "").lower().rstrip(".")
    except ValueError:
        return False
    return any(host == wanted.lstrip(".") or (wanted[0] == "." and host.endswith(wanted)) for wanted in hosts if wanted)


def gather(selection: CrawlSelection, store: Path, folder: Path, licence: str, tell: Tell) -> Gathered:
    """Fill `folder` with warc/ and pages.parquet. One run at a time works on a store: another waits.

    Raises `BadInput` naming the source if the listing cannot be had. Files that cannot be read are named in the result.
    """
    work = store / f"common-crawl-{selection.key}"
    work.mkdir(parents=True, exist_ok=True)
    with FileLock(work / "lock"):
        return _Reading(selection, work, tell).into(folder, licence)


class _Reading:
    """One run over the listing."""

    def __init__(self, selection: CrawlSelection, work: Path, tell: Tell) -> None:
        self._selection, self._work, self._tell = selection, work, tell
        self._pages = 0
        self._notes: list[dict[str, Any]] = []
        self._failed: list[dict[str, str | float]] = []
        self._session = client(selection.patience.timeout, home=selection.prefix) if selection.online else None
        self._paths: list[str] = []

    def into(self, folder: Path, licence: str) -> Gathered:
        """Read what is not read yet, until the listing or the limit of pages ends, and take a snapshot of it."""
        self._paths = self._listed()
        ahead = Ahead(self._fetch, len(self._paths), self._selection.downloads)
        limit = self._selection.pages
        try:
            for number, path in enumerate(self._paths):
                if limit is not None and self._pages >= limit:
                    break
                self._one(number, path, ahead)
        finally:
            ahead.close()
            if self._session is not None:
                self._session.close()
        pages = self._snapshot(folder, licence)
        return self._result(pages)

    def _one(self, number: int, path: str, ahead: Ahead) -> None:
        note = self._done(number, path)
        if note is None:
            try:
                if self._session is not None:
                    ahead.get(number, lambda: self._say(number))
                note = self._read(number, path)
                if note["faults"] and self._session is not None:
                    self._local(number, path).unlink()  # was it the way here? A second copy tells
                    Ahead(self._fetch, number + 1, 1).get(number, lambda: self._say(number))
                    note = self._read(number, path)
            except (DownloadFailed, OSError) as error:
                self._failed.append({"file": path, "problem": _reason(error), "records": 0})
                return
            write_sealed(self._work / f"{number:05d}.json", note)
            if self._session is not None:
                self._local(number, path).unlink()
        self._notes.append({**note, "number": number})
        self._pages += note["pages"]
        self._say(number)

    def _say(self, number: int, fresh: int = 0) -> None:
        self._tell(self._pages + fresh, {"file": number + 1, "files": len(self._paths)})

    def _local(self, number: int, path: str) -> Path:
        """Where a WARC file lies on this machine, or will when it was fetched."""
        return self._work / f"{number:05d}.download" if self._selection.online else Path(self._selection.prefix) / path

    def _url(self, path: str) -> str:
        return f"{self._selection.prefix.rstrip('/')}/{quote(path)}"

    def _fetch(self, number: int, stop: threading.Event) -> None:
        path = self._paths[number]
        target = self._local(number, path)
        if self._session is not None and not target.exists() and self._done(number, path) is None:
            download(self._session, self._url(path), target, patience=self._selection.patience, stop=stop)

    def _listed(self) -> list[str]:
        """The relative paths that the listing names, as many as are wanted."""
        selection = self._selection
        name = f"acquire.sources: {selection.source!r}"
        local = Path(selection.prefix) / selection.listing
        if self._session is not None:
            local = self._work / "listing"
            if not local.exists():
                if not reachable(selection.prefix):
                    raise BadInput(f"{name}: {selection.prefix} cannot be reached")
                try:
                    address = self._url(selection.listing)
                    download(self._session, address, local, patience=selection.patience, tell=lambda _: self._say(0))
                except DownloadFailed as error:
                    raise BadInput(f"{name}: the listing cannot be had: {error}") from error
        try:
            data = local.read_bytes()
            text = (gunzipped(data) if data.startswith(GZIP) else data).decode()
        except (OSError, EOFError, ValueError) as error:
            raise BadInput(f"{name}: {local}: the listing cannot be read ({_reason(error)})") from error
        paths = [line.strip() for line in text.splitlines() if line.strip()]
        if outside := next((p for p in paths if p.startswith("/") or ".." in p.split("/") or "://" in p), None):
            raise BadInput(f"{name}: {local}: {outside!r} is no path below the prefix")
        return paths[: selection.files]

    def _done(self, number: int, path: str) -> dict[str, Any] | None:
        """The note of a file that was read whole by an earlier run, if it is still the same file."""
        file = self._work / f"{number:05d}.json"
        if not file.is_file():
            return None
        note: dict[str, Any] = read_sealed(file)
        return (
            note
            if note["path"] == path and (self._selection.online or note["version"] == self._version(path))
            else None
        )

    def _version(self, path: str) -> list[int] | None:
        file = Path(self._selection.prefix) / path
        return [file.stat().st_size, file.stat().st_mtime_ns] if not self._selection.online and file.is_file() else None

    def _read(self, number: int, path: str) -> dict[str, Any]:
        """Filter one file into its segment and its table of pages; the note says what was found."""
        selection = self._selection
        archive = Archive(self._local(number, path), max_bytes=selection.max_bytes, admit=selection.admit)
        rows: list[dict[str, Any]] = []
        refused: Counter[str] = Counter()
        with Segment(self._work / f"{number:05d}.warc.gz", archive) as segment:
            for page in archive.pages():
                if selection.admits_language(page.languages):
                    rows.append(row_of(page, f"{number:05d}.warc.gz", segment.add(page), path))
                else:
                    refused["language"] += 1
                if (len(rows) + refused["language"]) % TELL_PAGES == 0:
                    self._say(number, len(rows))
        table = pa.Table.from_pylist(rows, schema=SCHEMA)
        pq.write_table(table, self._work / f"{number:05d}.parquet", compression="zstd")
        return {
            "path": path,
            "version": self._version(path),
            "records": archive.records,
            "pages": len(rows),
            "refused": dict(sorted((archive.refused + refused).items())),
            "faults": [str(fault) for fault in archive.faults],
            "fault_count": archive.fault_count,
        }

    def _snapshot(self, folder: Path, licence: str) -> int:
        """Link the segments that hold pages within the limit, and list their pages."""
        (folder / "warc").mkdir(parents=True)
        left = self._selection.pages if self._selection.pages is not None else self._pages
        listed = 0
        with pq.ParquetWriter(folder / "pages.parquet", SCHEMA, compression="zstd") as writer:
            for note in self._notes:
                if not note["pages"] or left <= listed:
                    continue
                name = f"{note['number']:05d}"
                table = pq.read_table(self._work / f"{name}.parquet", schema=SCHEMA)
                segment = self._work / f"{name}.warc.gz"
                beyond = table.slice(left - listed, 1).to_pylist()
                if beyond:
                    with open(segment, "rb") as whole, open(folder / "warc" / segment.name, "wb") as target:
                        _copy(whole, target, beyond[0]["offset"])
                else:
                    link_or_copy(segment, folder / "warc" / segment.name)
                table = table.slice(0, left - listed)
                column = pa.array([licence] * table.num_rows, pa.string())
                writer.write_table(table.set_column(table.schema.get_field_index("licence"), "licence", column))
                listed += table.num_rows
        return listed

    def _result(self, pages: int) -> Gathered:
        refused: Counter[str] = Counter()
        for note in self._notes:
            refused.update(note["refused"])
        broken = [
            {"file": n["path"], "problem": fault, "records": n["records"]} for n in self._notes for fault in n["faults"]
        ]
        faults = sum(note["fault_count"] for note in self._notes)
        counts = {
            "pages": float(pages),
            "files": float(len(self._notes)),
            "records": float(sum(note["records"] for note in self._notes)),
            **{f"skipped {reason}": float(count) for reason, count in sorted(refused.items())},
            **({"broken records": float(faults)} if faults else {}),
            **({"files without answer": float(len(self._failed))} if self._failed else {}),
        }
        selection = asdict(self._selection)
        facts = {name: selection[name] for name in ("prefix", "listing", "hosts", "languages", "mime")}
        result = Gathered(counts, facts, unreadable=[*broken, *self._failed])
        if result.unreadable:
            files = len({row["file"] for row in result.unreadable})
            result.notes.append(
                f"{self._selection.source}: {files} WARC files could not be read, or not wholly; see the report"
            )
        return result


def _copy(source: BinaryIO, target: BinaryIO, size: int) -> None:
    for block in _blocks(source, size):
        target.write(block)


def _blocks(source: BinaryIO, size: int) -> Iterator[bytes]:
    while size > 0 and (block := source.read(min(size, 1 << 20))):
        size -= len(block)
        yield block


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]

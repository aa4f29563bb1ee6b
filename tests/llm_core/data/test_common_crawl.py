"""Common Crawl from a folder in its layout and from a server that is slow, busy and breaks off; killed and gone on."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import xxhash
from fastwarc import ArchiveIterator
from warcio.archiveiterator import ArchiveIterator as WarcioIterator

from llm_core.artifacts import read_manifest
from llm_core.contract import BadInput, Event, Note, Progress, Report, Stop
from llm_core.data import acquire, clean
from llm_core.data.sources.common_crawl import on_hosts
from llm_core.pipeline import stage
from llm_core.settings.acquire import AcquireConfig, CommonCrawlSource
from llm_core.settings.clean import CleanConfig

CRAWL = "CC-MAIN-2024-22"
WHOLE = ("cc_whirlwind.warc.gz", "dolma_sample-0000.warc.gz", "warcio/example.warc.gz")
BROKEN = ("resiliparse_clipped.warc.gz", "warcio/bad.arc", "warcio/example-trunc.warc", "warcio/example.arc.gz")


def crawl_folder(root: Path, files: list[Path]) -> Path:
    """A folder in Common Crawl's layout; the files are linked, not copied."""
    base = root / "crawl-data" / CRAWL
    warc = base / "segments" / "1715971057216.39" / "warc"
    warc.mkdir(parents=True)
    lines = []
    for number, file in enumerate(files):
        link = warc / f"CC-MAIN-20240517233122-20240518023122-{number:05d}.warc.gz"
        link.symlink_to(file)
        lines.append(link.relative_to(root).as_posix() + "\n")
    with gzip.open(base / "warc.paths.gz", "wt") as listing:
        listing.writelines(lines)
    return root


@pytest.fixture
def folder(tmp_path: Path, shared_data: Path) -> Path:
    return crawl_folder(tmp_path / "cc", [shared_data / "warc" / name for name in WHOLE])


def acquired(
    tmp_path: Path, name: str = "raw", events: list[Event] | None = None, **settings: Any
) -> tuple[Path, Report]:
    source = CommonCrawlSource.model_validate({"kind": "common_crawl", "name": "cc", "crawl": CRAWL, **settings})
    config = AcquireConfig(sources=(source,), store=tmp_path / "store")
    heard: list[Event] = [] if events is None else events
    report = acquire.run(config, out=tmp_path / name, scratch=tmp_path, emit=heard.append)
    return tmp_path / name / "cc", report


def rows_of(raw: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(raw / "pages.parquet").to_pylist()
    return rows


def body_at(raw: Path, row: dict[str, Any]) -> bytes:
    """As `clean` reads it: by segment and offset."""
    with open(raw / "warc" / row["segment"], "rb") as file:
        file.seek(row["offset"])
        body: bytes = next(iter(ArchiveIterator(file, parse_http=True))).reader.read()
        return body


def same(one: Path, other: Path) -> bool:
    """Whether two products hold the same files with the same bytes; the prefix stands in the facts alone."""
    return bool(read_manifest(one.parent, "raw")["files"] == read_manifest(other.parent, "raw")["files"])


def test_every_page_leads_back_to_its_record(tmp_path: Path, folder: Path) -> None:
    raw, report = acquired(tmp_path, prefix=str(folder), licence="unknown")
    rows = rows_of(raw)
    assert len(rows) == 1 + 22 + 1 == report.metrics["pages"]
    for row in rows:
        body = body_at(raw, row)
        assert (xxhash.xxh3_128_hexdigest(body), len(body)) == (row["digest"], row["bytes"])
        with open(folder / row["source"], "rb") as file:  # and to the record in Common Crawl's own file
            file.seek(row["source_offset"])
            record = next(iter(ArchiveIterator(file)))
        assert record.headers.get("WARC-Target-URI").strip("<>") == row["url"]
    for segment in (raw / "warc").iterdir():
        with open(segment, "rb") as file:
            kinds = [record.rec_type for record in WarcioIterator(file)]
        assert kinds.count("response") == sum(row["segment"] == segment.name for row in rows)
    first = next(row for row in rows if row["language"] == "es")
    assert first["url"] == "https://an.wikipedia.org/wiki/Escopete"
    facts = read_manifest(raw.parent, "raw")["facts"]["sources"]["cc"]
    assert (facts["kind"], facts["weight"], facts["records"], facts["files"]) == ("common_crawl", 1.0, 58.0, 3.0)


def test_a_kept_record_is_common_crawls_own_bytes(tmp_path: Path, folder: Path, shared_data: Path) -> None:
    raw, _ = acquired(tmp_path, prefix=str(folder), files=1)
    data = (shared_data / "warc" / "cc_whirlwind.warc.gz").read_bytes()
    assert (raw / "warc" / "00000.warc.gz").read_bytes() == data[:516] + data[1023:18374]


@pytest.mark.parametrize(
    ("settings", "pages"),
    [
        ({"hosts": ["an.wikipedia.org"]}, 1),
        ({"hosts": [".wikipedia.org", "example.com"]}, 2),
        ({"hosts": ["wikipedia.org", "example.com"]}, 1),
        ({"languages": ["es"], "files": 1}, 1),
        ({"languages": ["spa"], "files": 1}, 1),
        ({"mime": [], "limit": 5}, 5),
        ({"files": 2}, 23),
        ({"max_bytes": 1_500}, 1),
    ],
)
def test_filters(tmp_path: Path, folder: Path, settings: dict[str, Any], pages: int) -> None:
    raw, report = acquired(tmp_path, prefix=str(folder), **settings)
    rows = rows_of(raw)
    assert len(rows) == pages == report.metrics["pages"]
    assert all(xxhash.xxh3_128_hexdigest(body_at(raw, row)) == row["digest"] for row in rows)


def test_pages_that_nobody_judged_are_left_to_clean(tmp_path: Path, folder: Path) -> None:
    raw, report = acquired(tmp_path, prefix=str(folder), languages=["de"])
    languages = {row["language"] for row in rows_of(raw)}
    assert languages <= {None, "de"}
    assert None in languages
    counts = report.tables["sources"][0]
    assert counts["skipped language"] == 24 - report.metrics["pages"] > 0


def test_nothing_kept_is_said_with_the_reasons(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(BadInput, match=r"'cc' gave nothing .*skipped host: 24"):
        acquired(tmp_path, prefix=str(folder), hosts=["nowhere.example"])


def test_broken_files_are_reported_and_cost_nothing_else(tmp_path: Path, shared_data: Path) -> None:
    names = ("cc_whirlwind.warc.gz", *BROKEN, "missing.warc.gz", "warcio/example.warc.gz")
    folder = crawl_folder(tmp_path / "cc", [shared_data / "warc" / name for name in names])
    events: list[Event] = []
    raw, report = acquired(tmp_path, events=events, prefix=str(folder))
    assert len(rows_of(raw)) == 3
    table = {int(str(row["file"])[-13:-8]): row for row in report.tables["unreadable"]}
    assert sorted(table) == [1, 2, 3, 4, 5]
    assert [table[n]["records"] for n in sorted(table)] == [1, 0, 4, 0, 0]
    assert "cut off" in str(table[1]["problem"])
    assert "ARC" in str(table[2]["problem"])
    assert "No such file" in str(table[5]["problem"])
    assert any(isinstance(event, Note) and "5 WARC files" in event.text for event in events)


def test_more_files_later_read_only_those(tmp_path: Path, folder: Path) -> None:
    raw, _ = acquired(tmp_path, prefix=str(folder), files=1)
    note = next((tmp_path / "store").glob("cc/*/00000.json"))
    before = note.stat().st_mtime_ns
    raw, report = acquired(tmp_path, "more", prefix=str(folder))
    assert (report.metrics["pages"], note.stat().st_mtime_ns) == (24, before)
    again, _ = acquired(tmp_path / "elsewhere", prefix=str(folder))
    assert same(raw, again)


def test_a_note_whose_bytes_changed_is_named(tmp_path: Path, folder: Path) -> None:
    """A number of pages that turned into another would end the reading early."""
    before, _ = acquired(tmp_path, prefix=str(folder))
    note = next((tmp_path / "store").glob("cc/*/00000.json"))
    good = note.read_bytes()
    changed = good.replace(b'"pages": 2', b'"pages": 3').replace(b'"pages": 1', b'"pages": 5')
    assert changed != good
    note.write_bytes(changed)
    with pytest.raises(BadInput, match=r"00000.json: its bytes changed after it was written"):
        acquired(tmp_path, "again", prefix=str(folder))
    note.unlink()  # as the sentence says
    again, _ = acquired(tmp_path, "again", prefix=str(folder))
    assert same(before, again)


def test_a_listing_cannot_point_outside(tmp_path: Path, folder: Path) -> None:
    with gzip.open(folder / "crawl-data" / CRAWL / "warc.paths.gz", "wt") as listing:
        listing.write("../../etc/passwd\n")
    with pytest.raises(BadInput, match="no path below the prefix"):
        acquired(tmp_path, prefix=str(folder))
    with pytest.raises(BadInput, match="the listing cannot be read"):
        acquired(tmp_path, prefix=str(tmp_path / "nowhere"))


def test_hosts() -> None:
    assert on_hosts("https://EXAMPLE.org:8080/x", ("example.org",))
    assert on_hosts("https://a.example.org/", (".example.org",))
    assert not on_hosts("https://badexample.org/", (".example.org",))
    assert not on_hosts("https://a.example.org/", ("example.org",))
    assert not on_hosts("http://[broken/", ("example.org",))


@dataclass
class Plan:
    """What the server does with a file's requests, one after the other; afterwards it serves it."""

    root: Path
    faults: dict[str, list[Any]] = field(default_factory=dict)
    asked: list[tuple[str, str | None, float]] = field(default_factory=list)
    hold: dict[str, threading.Event] = field(default_factory=dict)

    def requests(self, end: str) -> list[str | None]:
        """The Range headers of the requests for a file, in order."""
        return [wanted for path, wanted, _ in self.asked if path.endswith(end)]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    plan: Plan

    def do_GET(self) -> None:
        path, wanted = self.path.lstrip("/"), self.headers.get("Range")
        self.plan.asked.append((path, wanted, time.monotonic()))
        fault = next((f for end, faults in self.plan.faults.items() if path.endswith(end) for f in faults[:1]), None)
        for end, faults in self.plan.faults.items():
            if path.endswith(end) and faults:
                faults.pop(0)
        file = self.plan.root / path
        if isinstance(fault, dict):
            return self._answer(fault.pop("status"), b"", fault)
        if not file.is_file():
            return self._answer(404, b"", {})
        data = file.read_bytes()
        start = int(wanted.removeprefix("bytes=").partition("-")[0]) if wanted else 0
        if start >= len(data):
            return self._answer(416, b"", {"Content-Range": f"bytes */{len(data)}"})
        headers = {"ETag": f'"{xxhash.xxh3_64_hexdigest(data)}"'}
        if wanted:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        if isinstance(fault, bytes):
            return self._answer(200, fault, {})
        self._answer(206 if wanted else 200, data[start:], headers, stop_after=fault)
        return None

    def _answer(self, status: int, body: bytes, headers: dict[str, str], stop_after: int | None = None) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body[:stop_after])
        self.wfile.flush()
        for end, event in self.plan.hold.items():
            if self.path.endswith(end):
                event.wait(60)
        if stop_after is not None:
            self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def served(plan: Plan) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), type("Planned", (Handler,), {"plan": plan})) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            for event in plan.hold.values():
                event.set()
            server.shutdown()
            thread.join()


def test_over_http_the_same_product(tmp_path: Path, folder: Path) -> None:
    """503 with and without Retry-After, a body that breaks off twice, a wrong body: all mended, and the bytes equal."""
    plan = Plan(folder)
    plan.faults = {
        "warc.paths.gz": [{"status": 503, "Retry-After": "1"}],
        "00000.warc.gz": [{"status": 503}, 7_000, 5_000],
        "00001.warc.gz": [b"\x1f\x8b\x08 not what was asked for"],
    }
    local, _ = acquired(tmp_path / "local", prefix=str(folder))
    with served(plan) as url:
        raw, _ = acquired(tmp_path, prefix=url, downloads=2)
    assert same(raw, local)
    assert plan.requests("00000.warc.gz") == [None, None, "bytes=7000-", "bytes=12000-"]
    assert plan.requests("00001.warc.gz") == [None, None], "a file that cannot be read is fetched once more"
    times = [moment for path, _, moment in plan.asked if path.endswith("paths.gz")]
    assert len(times) == 2
    assert times[1] - times[0] >= 1.0, "Retry-After was not obeyed"
    assert not list((tmp_path / "store").rglob("*.download*")), "what was read is removed"


def test_over_http_a_file_that_stays_broken_is_reported(tmp_path: Path, folder: Path) -> None:
    plan = Plan(folder, faults={"00001.warc.gz": [{"status": 403}, {"status": 403}]})
    with served(plan) as url:
        raw, report = acquired(tmp_path, prefix=url)
        assert {row["segment"] for row in rows_of(raw)} == {"00000.warc.gz", "00002.warc.gz"}
        assert "403" in str(report.tables["unreadable"][0]["problem"])
        raw, report = acquired(tmp_path, "again", prefix=url, downloads=1)  # it was not noted as done
    assert len(plan.requests("00001.warc.gz")) == 2
    assert len(plan.requests("00000.warc.gz")) == 1


def test_killed_in_the_middle_it_goes_on_file_by_file(tmp_path: Path, folder: Path) -> None:
    plan = Plan(folder, faults={"00001.warc.gz": [100_000]}, hold={"00001.warc.gz": threading.Event()})
    local, _ = acquired(tmp_path / "local", prefix=str(folder))
    settings = {"kind": "common_crawl", "name": "cc", "crawl": CRAWL, "downloads": 1}
    with served(plan) as url:
        config = {"sources": [{**settings, "prefix": url}], "store": str(tmp_path / "store")}
        program = (
            "import json, sys; from pathlib import Path; from llm_core.data import acquire;"
            "from llm_core.settings.acquire import AcquireConfig as C;"
            "acquire.run(C.model_validate(json.loads(sys.argv[1])), out=Path(sys.argv[2]), scratch=Path(sys.argv[2]),"
            " emit=lambda e: None)"
        )
        child = subprocess.Popen([sys.executable, "-c", program, json.dumps(config), str(tmp_path / "killed")])
        try:
            deadline = time.monotonic() + 120
            while not [p for p in (tmp_path / "store").rglob("00001.download.part") if p.stat().st_size == 100_000]:
                assert child.poll() is None, "it ended by itself"
                assert time.monotonic() < deadline
                time.sleep(0.02)
        finally:
            child.send_signal(signal.SIGKILL)
            child.wait()
        assert len(list((tmp_path / "store").rglob("00000.json"))) == 1
        plan.hold["00001.warc.gz"].set()
        raw, _ = acquired(tmp_path, prefix=url, downloads=1)
    assert same(raw, local)
    assert plan.requests("00000.warc.gz") == [None], "a file that was done is not fetched again"
    assert plan.requests("00001.warc.gz") == [None, "bytes=100000-"], "a file that had begun is fetched from there"


def test_asked_to_end_it_ends_at_once_and_goes_on_later(tmp_path: Path, folder: Path) -> None:
    plan = Plan(folder, hold={"00000.warc.gz": threading.Event()}, faults={"00000.warc.gz": [1_000]})
    settings = {"kind": "common_crawl", "name": "cc", "crawl": CRAWL}

    def emit(event: Event) -> None:
        if isinstance(event, Progress) and event.figures.get("file") == 1:
            raise Stop

    with served(plan) as url:
        source = CommonCrawlSource.model_validate({**settings, "prefix": url})
        config = AcquireConfig(sources=(source,), store=tmp_path / "store")
        with pytest.raises(Stop):
            acquire.run(config, out=tmp_path / "raw", scratch=tmp_path, emit=emit)
        plan.hold["00000.warc.gz"].set()
        raw, report = acquired(tmp_path, prefix=url)
    assert report.metrics["pages"] == 24
    assert os.listdir(raw.parent) != []


def test_a_host_that_is_not_there_is_said_at_once(tmp_path: Path) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        port = server.server_address[1]
    with pytest.raises(BadInput, match=r"'cc': http://127.0.0.1:\d+ cannot be reached"):
        acquired(tmp_path, prefix=f"http://127.0.0.1:{port}")


def test_clean_reads_it_as_it_reads_a_crawl(tmp_path: Path, folder: Path, root: Path) -> None:
    """Every page comes out of `clean`, kept or dropped with a reason, under the digest that it has in pages.parquet."""
    raw, _ = acquired(tmp_path, prefix=str(folder), licence="CC0-1.0")
    config = CleanConfig.model_validate({"workers": 1})
    files = {keyword: root / path for keyword, path in stage("clean").files.items()}
    run: Any = clean.run
    run(config, raw=raw.parent, **files, out=tmp_path / "corpus", scratch=tmp_path, emit=lambda _: None)
    kept, dropped = (
        pq.read_table(tmp_path / "corpus" / f"{name}.parquet").to_pylist() for name in ("documents", "dropped")
    )
    assert len(kept) + len(dropped) == 24
    assert len(kept) >= 5
    assert {row["source"] for row in kept} == {"cc"}
    assert {row["url"] for row in [*kept, *dropped]} == {row["url"] for row in rows_of(raw)}
    assert {row["digest"] for row in kept} <= {row["digest"] for row in rows_of(raw)}
    assert not [row for row in dropped if row["reason"] == "unreadable_record"]

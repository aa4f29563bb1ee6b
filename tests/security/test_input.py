"""Data that is made to do harm: bombs, names that lead elsewhere, addresses that lead inside."""

from __future__ import annotations

import bz2
import gzip
import json
import socket
import threading
import tracemalloc
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from llm_core import artifacts
from llm_core.contract import BadInput
from llm_core.data import packed, rules
from llm_core.data.sources import download, files, wikipedia
from llm_core.data.sources.archives import Archive
from llm_core.data.sources.download import DownloadFailed, Patience
from tasks import experiments

MB = 1_000_000


def bomb(size: int) -> bytes:
    """A thousandth of `size`."""
    return gzip.compress(bytes(size), 9)


def peak(call: Any) -> int:
    """Bytes of Python's memory that a call takes at most."""
    tracemalloc.start()
    try:
        call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_packed_lists_have_a_limit() -> None:
    data = bomb(50 * MB)
    with pytest.raises(packed.TooLarge, match="larger than 1,000,000 bytes"):
        packed.gunzipped(data, MB)

    def refused() -> None:
        with pytest.raises(packed.TooLarge):
            packed.gunzipped(data, MB)

    assert peak(refused) < 10 * MB
    assert len(packed.gunzipped(data, 50 * MB)) == 50 * MB
    for broken in (data[:-9], b"\x1f\x8b\x08nothing", data[:40]):
        with pytest.raises(OSError, match=r"gzip|CRC|compress|block|header"):
            packed.gunzipped(broken)


def test_a_line_and_an_array_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_LINE_BYTES", MB)
    monkeypatch.setattr(files, "MAX_ARRAY_BYTES", MB)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "fine"}\n') + bomb(40 * MB))
    (tmp_path / "b.json.gz").write_bytes(bomb(40 * MB))
    (tmp_path / "c.parquet.gz").write_bytes(bomb(40 * MB))

    def read(name: str) -> list[Any]:
        options = files.FilesOptions("notes", (str(tmp_path / name),))
        return list(files.FileRows(options).rows(None))

    with pytest.raises(BadInput, match=r"a\.jsonl\.gz, line 2: longer than 1,000,000 bytes"):
        read("a.jsonl.gz")
    for name in ("b.json.gz", "c.parquet.gz"):
        with pytest.raises(BadInput, match="larger than 1,000,000 bytes"):
            read(name)

    def refused() -> None:
        with pytest.raises(BadInput):
            read("a.jsonl.gz")

    assert peak(refused) < 10 * MB


def test_a_page_of_a_dump_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wikipedia, "MAX_PAGE_BYTES", MB)
    page = b"<page><title>%s</title><ns>0</ns><revision><text>%s</text></revision></page>"
    good = b"".join(page % (b"good", b"words " * 30_000) for _ in range(20))  # together more than the limit
    (tmp_path / "dump").write_bytes(bz2.compress(b"<mediawiki>" + good + page % (b"bomb", b"x" * 30 * MB)))
    dump = wikipedia.Dump(tmp_path / "dump", "simple")
    assert {article.title for article in dump.articles()} == {"good"}
    assert "larger than 1,000,000 bytes" in (dump.fault or "")


def test_a_bomb_inside_a_warc_file(tmp_path: Path) -> None:
    def record(kind: bytes, body: bytes) -> bytes:
        head = b"WARC/1.0\r\nWARC-Type: %s\r\nWARC-Target-URI: http://a.example/\r\nWARC-Record-ID: <urn:uuid:1>\r\n"
        head += b"Content-Type: application/http\r\n" if kind == b"response" else b""
        return gzip.compress(head % kind + b"Content-Length: %d\r\n\r\n" % len(body) + body + b"\r\n\r\n")

    http = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n"
    (tmp_path / "a.warc.gz").write_bytes(
        record(b"response", http + bomb(60 * MB))
        + record(b"response", b"HTTP/1.1 200 OK\r\n\r\nfine")
        + record(b"metadata", bytes(60 * MB))
        + record(b"response", b"HTTP/1.1 200 OK\r\n\r\nfine too")
    )
    found: list[bytes] = []
    archive = Archive(tmp_path / "a.warc.gz", max_bytes=MB)
    assert peak(lambda: found.extend(page.body for page in archive.pages())) < 20 * MB
    assert found == [b"fine", b"fine too"]
    assert archive.refused["too_large"] == 1


@pytest.mark.parametrize("name", ["../outside", "/etc/hostname", "a/../../outside", "..", ""])
def test_a_manifest_names_nothing_outside_its_product(tmp_path: Path, name: str) -> None:
    (tmp_path / "outside").write_bytes(b"secret")
    with artifacts.new_product(tmp_path / "product", "thing") as new:
        (new / "a").write_bytes(b"x")
    path = tmp_path / "product" / "manifest.json"
    content = json.loads(path.read_text())
    target = tmp_path / "product" / name
    size, digest = (target.stat().st_size, artifacts.sha256(target)) if target.is_file() else (0, "")
    content["files"][name] = {"bytes": size, "sha256": digest}
    path.write_text(json.dumps(content))
    with pytest.raises(artifacts.BrokenProduct):
        artifacts.verify(tmp_path / "product")


@pytest.mark.parametrize("preset", ["../params", "../../etc/passwd", "/etc/passwd", "a/b", "..", "tiny/"])
def test_a_preset_is_a_file_of_presets(root: Path, preset: str) -> None:
    with pytest.raises(BadInput, match="no preset"):
        experiments.overrides(root, preset, [])
    with pytest.raises(BadInput, match="no finished experiment"):
        experiments.adopt(root, preset)


def test_rules_run_from_the_project_alone(tmp_path: Path) -> None:
    (tmp_path / "rules").mkdir()
    hostile = "import pathlib\npathlib.Path(__file__).with_name('ran').touch()\ndef extract(soup): return 'x'\n"
    (tmp_path / "evil.py").write_text(hostile)
    (tmp_path / "rules" / "good.example.py").write_text("def extract(soup): return 'by the rule'\n")
    hosts = (
        "../evil",
        "..%2fevil",
        "%2e%2e/evil",
        "evil.py",
        "/evil",
        "..",
        ".",
        "a@../evil",
        "[::1]",
        "evil\0",
        "x/../../evil",
    )
    for host in hosts:
        assert rules.rule_for(f"http://{host}/", tmp_path / "rules") is None
    for name in ("../evil", "/evil", "..", "a/b", "", str(tmp_path / "evil")):
        with pytest.raises(BadInput, match="there is no rule"):
            rules.rule_for("http://a.example/", tmp_path / "rules", name)
    assert not (tmp_path / "ran").exists()
    assert rules.rule_for("http://www.good.example/", tmp_path / "rules")


@pytest.fixture
def here() -> Iterator[tuple[int, list[str]]]:
    """A server on loopback that redirects /to/URL there and says "inside" elsewhere; its port and what was asked."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(f"{self.headers['Host']} {self.path}")
            away = self.path.partition("/to/")[2]
            self.send_response(302 if away else 200)
            if away:
                self.send_header("Location", away)
            body = b"" if away else b"inside"
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port, asked
    server.shutdown()
    server.server_close()


QUICK = Patience(timeout=5, tries=1, pause=0.01)


def fetch(url: str, target: Path, home: str | None = None) -> None:
    with download.client(5, home=url if home is None else home) as session:
        download.download(session, url, target, patience=QUICK)


def test_a_download_is_not_sent_inside(here: tuple[int, list[str]], tmp_path: Path) -> None:
    port, asked = here
    home = f"http://127.0.0.1:{port}"
    fetch(f"{home}/file", tmp_path / "named")
    fetch(f"{home}/to/{home}/file", tmp_path / "same-host")
    assert (tmp_path / "named").read_bytes() == (tmp_path / "same-host").read_bytes() == b"inside"
    count = len(asked)
    others = (
        f"localhost:{port}",
        f"127.0.0.2:{port}",
        "169.254.169.254",
        f"[::1]:{port}",
        f"[::ffff:127.0.0.1]:{port}",
    )
    for other in others:
        with pytest.raises(DownloadFailed, match="sent to where no download may go"):
            fetch(f"{home}/to/http://{other}/secret", tmp_path / "secret")
    assert len(asked) == count + len(others), "what it was sent to was never asked"
    assert not (tmp_path / "secret").exists()


def test_a_name_that_changes_its_address_gives_nothing(
    here: tuple[int, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DNS rebinding: a public address when it is looked up, loopback when it is connected to."""
    port, asked = here
    look_up, answers = socket.getaddrinfo, ["93.184.216.34", "127.0.0.1"]

    def changing(host: Any, *rest: Any, **named: Any) -> Any:
        if host in ("rebinding.example", b"rebinding.example"):
            host = answers.pop(0) if answers else "127.0.0.1"
        return look_up(host, *rest, **named)

    monkeypatch.setattr(socket, "getaddrinfo", changing)
    home = f"http://127.0.0.1:{port}"
    with pytest.raises(DownloadFailed, match=r"rebinding\.example leads to 127\.0\.0\.1, which is loopback"):
        fetch(f"{home}/to/http://rebinding.example:{port}/secret", tmp_path / "secret")
    assert asked[-1] == f"rebinding.example:{port} /secret", "the second look-up did lead inside"
    assert not list(tmp_path.iterdir()), "and nothing of the answer was kept"

"""The Hub over its own protocol, spoken by a server on loopback: revisions, a branch that moves, no network at all."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pyarrow.parquet as pq
import pytest

from llm_core.artifacts import read_manifest

OLD, NEW = "1" * 40, "2" * 40
README = "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: rows.jsonl\n---\n"
PROGRAM = """
import json, sys
from pathlib import Path
from llm_core.contract import BadInput, Stop
from llm_core.data import acquire
from llm_core.data.sources import parts
from llm_core.settings.acquire import AcquireConfig

place, stop_at = Path(sys.argv[2]), int(sys.argv[3])
def emit(event):
    if stop_at and getattr(event, "done", 0) >= stop_at:
        raise Stop
try:
    config = AcquireConfig.model_validate(json.loads(sys.argv[1]))
    acquire.run(config, out=place / "raw", scratch=place / "s", emit=emit)
except Stop:
    print("stopped")
except BadInput as error:
    print(error, "datasets" in sys.modules)
"""


class Hub(BaseHTTPRequestHandler):
    """As much of the Hub as `datasets` asks for: two commits of one dataset; `main` is one of them."""

    protocol_version = "HTTP/1.1"
    main = OLD
    files: dict[str, dict[str, bytes]]
    asked: list[str]

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.asked.append(f"{self.command} {path}")
        api = re.fullmatch(r"/api/datasets/owner/set(?:/revision/([^/]+))?", path)
        tree = re.fullmatch(r"/api/datasets/owner/set/tree/([^/]+)(?:/(.*))?", path)
        file = re.fullmatch(r"/(?:api/)?datasets/owner/set/resolve(?:-cache)?/([^/]+)/(.+)", path)
        if api and (commit := self._commit(api[1] or "main")):
            names = [{"rfilename": name} for name in self.files[commit]]
            self._json({"_id": "1", "id": "owner/set", "sha": commit, "siblings": names, "tags": [], "private": False,
                        "gated": False, "disabled": False, "downloads": 0, "likes": 0})  # fmt: skip
        elif tree and (commit := self._commit(tree[1])):
            self._json([] if tree[2] else self._entries(commit))
        elif file and (commit := self._commit(file[1])) and file[2] in self.files[commit]:
            self._bytes(self.files[commit][file[2]], commit)
        else:
            self._json({"error": "Entry not found"}, 404)

    do_HEAD = do_GET

    def do_POST(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.asked.append(f"POST {path}")
        body = self.rfile.read(int(self.headers["Content-Length"]))
        info = re.fullmatch(r"/api/datasets/owner/set/paths-info/([^/]+)", path)
        commit = self._commit(info[1]) if info else None
        wanted = (
            json.loads(body)["paths"] if body.startswith(b"{") else re.findall(r"paths=([^&]+)", unquote(body.decode()))
        )
        self._json([entry for entry in self._entries(commit) if entry["path"] in wanted] if commit else [])

    def _commit(self, name: str) -> str | None:
        name = type(self).main if name == "main" else name
        return name if name in self.files else None

    def _entries(self, commit: str) -> list[dict[str, Any]]:
        files = self.files[commit].items()
        return [{"type": "file", "oid": "a" * 40, "size": len(data), "path": name} for name, data in files]

    def _json(self, value: Any, status: int = 200) -> None:
        more = {"X-Error-Code": "EntryNotFound"} if status == 404 else {}
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json", **more})

    def _bytes(self, data: bytes, commit: str) -> None:
        headers = {"ETag": f'"{commit}{len(data)}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted:
            start, end = int(wanted[1]), int(wanted[2] or len(data) - 1)
            headers["Content-Range"] = f"bytes {start}-{min(end, len(data) - 1)}/{len(data)}"
            data = data[start : end + 1]
        self._send(206 if wanted else 200, data, headers)

    def _send(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[type[Hub]]:
    rows = {c: "".join(json.dumps({"text": f"{c[0]}-{n}"}) + "\n" for n in range(4_000)).encode() for c in (OLD, NEW)}
    values = {
        "files": {c: {"README.md": README.encode(), "rows.jsonl": rows[c]} for c in rows},
        "asked": [],
        "main": OLD,
    }
    handler = type("OneHub", (Hub,), values)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        handler.address = f"http://127.0.0.1:{server.server_address[1]}"  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        yield handler
        server.shutdown()
        thread.join()


def run(place: Path, endpoint: str, stop_at: int = 0, **settings: Any) -> str:
    """Acquire in a process of its own, for which the Hub is at `endpoint`; what it printed."""
    source = {"kind": "huggingface", "name": "x", "path": "owner/set", **settings}
    config = json.dumps({"sources": [source], "store": str(place / "store")})
    kept = {key: value for key, value in os.environ.items() if "proxy" not in key.lower()}
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        kept.pop(name, None)
    environment = {**kept, "HF_ENDPOINT": endpoint, "HF_HOME": str(place / "hf"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    command = [sys.executable, "-c", PROGRAM, config, str(place), str(stop_at)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip()


def product(place: Path) -> tuple[list[str], str]:
    """(first letters of the texts, the revision in the manifest)."""
    texts = pq.read_table(place / "raw" / "x" / "documents.parquet")["text"].to_pylist()
    assert len(texts) == 4_000
    return sorted({text[0] for text in texts}), read_manifest(place / "raw", "raw")["facts"]["sources"]["x"]["revision"]


def test_a_branch_that_moves_in_the_middle_changes_nothing(tmp_path: Path, hub: Any) -> None:
    """What `main` meant at the start is read to the end, over a stop; the next acquire reads the new commit."""
    assert run(tmp_path, hub.address, stop_at=2_000) == "stopped"
    hub.main = NEW
    assert run(tmp_path, hub.address) == ""
    assert product(tmp_path) == (["1"], OLD)
    assert run(tmp_path, hub.address) == ""
    assert product(tmp_path) == (["2"], NEW)


def test_a_revision_that_is_not_there_is_named(tmp_path: Path, hub: Any) -> None:
    said = run(tmp_path, hub.address, revision="nowhere")
    assert "'owner/set' at nowhere" in said
    assert said.endswith("False"), "datasets was imported before the Hub was asked"


def test_without_a_network_one_sentence_before_anything_tries(tmp_path: Path) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        closed = f"http://127.0.0.1:{server.server_address[1]}"
    said = run(tmp_path, closed)
    assert said == f"acquire.sources: 'x': 'owner/set' is no local folder, and {closed} cannot be reached False"

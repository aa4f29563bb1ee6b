"""Secrets that are planted in the environment and in addresses are found nowhere after a whole build, by nobody."""

from __future__ import annotations

import base64
import gzip
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks import killing
from llm_core.pipeline import VERBS
from tasks.workspace import Workspace

PLANTED = {
    name: f"planted-{name.lower().replace('_', '-')}-91c4"
    for name in ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "GROUNDUP_API_KEY", "GROUNDUP_CHAT_PASSWORD",
                 "OPENAI_API_KEY", "DATABASE_PASSWORD")
}  # fmt: skip
PASSWORD = "planted-in-an-address-91c4"
ENCODED = base64.b64encode(f"me:{PASSWORD}".encode()).decode().rstrip("=")


def files_below(folder: Path) -> Iterator[Path]:
    """Every file below a folder; links are not followed, as they lead to the code."""
    for place, _, names in os.walk(folder):
        yield from (path for name in names if not (path := Path(place, name)).is_symlink() and path.is_file())


def content(path: Path) -> bytes:
    """A file's bytes, and behind them what is packed in it."""
    data = path.read_bytes()
    if data[:2] == b"\x1f\x8b":
        return data + gzip.decompress(data)
    if data[:4] == b"PAR1":
        return data + str(pq.read_table(path).to_pylist()).encode("utf-8", "replace")
    return data


def files_with(folder: Path, words: list[str]) -> list[str]:
    """Every file below a folder that holds one of the words, packed or plain."""
    found = []
    for path in files_below(folder):
        data = content(path)
        found += [f"{path}: {word}" for word in words if word.encode() in data]
    return found


def with_password(address: str) -> str:
    scheme, _, rest = address.partition("://")
    return f"{scheme}://me:{PASSWORD}@{rest}"


@pytest.mark.timeout(1800)
def test_a_whole_build_leaves_no_trace_of_them(root: Path, workspace: Workspace, tmp_path: Path) -> None:
    """Both servers are the session's: what they store and log is searched as well."""
    folder = tmp_path / "built"
    folder.mkdir()
    space = killing.workspace(killing.copy_code(root, _made(folder / "project")), folder / "workspace")
    addresses = {name: with_password(os.environ[name]) for name in ("MLFLOW_TRACKING_URI", "PREFECT_API_URL")}
    environment = killing.environment() | PLANTED | addresses
    environment["HF_ENDPOINT"] = with_password("https://hub.example")
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli", "run", "--json"],
        cwd=space.root, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    summary = json.loads(done.stdout)
    assert summary["states"] == dict.fromkeys(VERBS, "ran")
    run = (space.read_report("align") or {})["run"]["mlflow_run_id"]
    servers = workspace.root / ".run"
    assert files_with(servers, [run]), "the tracker stores the run where it is searched"
    assert files_with(servers, [summary["links"]["Prefect run"].rpartition("/")[2]]), "and so does Prefect"
    assert (space.root / "reports" / "index.html").is_file()
    (folder / "said").write_text(done.stdout + done.stderr)
    words = [*PLANTED.values(), PASSWORD, ENCODED]
    assert files_with(folder, words) == []
    assert files_with(servers, words) == []


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_the_search_looks_into_what_is_packed(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "plain").write_text(f"a {PASSWORD} b")
    (tmp_path / "deep" / "page.warc.gz").write_bytes(gzip.compress(b"first") + gzip.compress(PASSWORD.encode()))
    table = pa.table({"text": ["x" * 50 + PASSWORD] * 3})
    pq.write_table(table, tmp_path / "deep" / "rows.parquet", compression="zstd")
    (tmp_path / "clean").write_text("nothing")
    found = files_with(tmp_path, [PASSWORD])
    assert sorted(Path(line.partition(": ")[0]).name for line in found) == ["page.warc.gz", "plain", "rows.parquet"]

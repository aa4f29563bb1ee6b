"""Datasets that are killed go on where they were, and end with the bytes of a run that nothing disturbed."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llm_core.artifacts import digest
from llm_core.contract import BadInput, Event, Progress, Stop
from llm_core.data import acquire
from llm_core.data.sources import parts
from llm_core.settings.acquire import AcquireConfig

ROWS = 7_300
KILLED = """
import json, sys
from pathlib import Path
from llm_core.contract import Progress
from llm_core.data import acquire
from llm_core.data.sources import parts
from llm_core.settings.acquire import AcquireConfig

parts.PART_ROWS = 2_000
def emit(event):
    if isinstance(event, Progress) and event.done >= int(sys.argv[3]):
        print(event.done, flush=True)
        sys.stdin.read()  # until it is killed
acquire.run(AcquireConfig.model_validate(json.loads(sys.argv[1])), out=Path(sys.argv[2]) / "raw",
            scratch=Path(sys.argv[2]) / "scratch", emit=emit)
"""


def config(source: dict[str, Any], store: Path) -> AcquireConfig:
    return AcquireConfig.model_validate({"sources": [{"name": "x", **source}], "store": str(store)})


def run(source: dict[str, Any], where: Path, emit: Any = lambda event: None) -> Path:
    acquire.run(config(source, where), out=where / "raw", scratch=where / "scratch", emit=emit)
    return where / "raw"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A dataset in the Hub's layout, in three Parquet files of several row groups."""
    folder = tmp_path / "set"
    folder.mkdir()
    for shard in range(3):
        numbers = range(shard, ROWS, 3)
        table = pa.table({"body": [f"document {n} " * (n % 50) for n in numbers], "name": [str(n) for n in numbers]})
        pq.write_table(table, folder / f"train-{shard:05d}-of-00003.parquet", row_group_size=700)
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: train-*.parquet\n---\n"
    )
    return folder


def sources(folder: Path) -> dict[str, dict[str, Any]]:
    columns = {"columns": {"text": "body", "title": "name"}}
    return {
        "huggingface": {"kind": "huggingface", "path": str(folder), **columns},
        "files": {"kind": "files", "paths": [str(folder / "*.parquet")], **columns},
        "bookcorpus": {"kind": "bookcorpus", "path": str(folder), "column": "body", "sentences": 3},
        "limited": {"kind": "huggingface", "path": str(folder), "limit": 6_500, **columns},
    }


@pytest.mark.parametrize("kind", ["huggingface", "files", "bookcorpus", "limited"])
@pytest.mark.parametrize("stop_at", [1, 1_000])
def test_asked_to_end_and_gone_on(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, kind: str, stop_at: int
) -> None:
    """Stopped once and again; `done` never falls back, and nothing is read twice."""
    monkeypatch.setattr(parts, "PART_ROWS", 2_000)
    source = sources(folder)[kind]
    undisturbed = run(source, tmp_path / "whole")
    heard: list[float] = []

    def stopping(event: Event) -> None:
        if isinstance(event, Progress):
            heard.append(event.done)
            if event.done >= stop_at * (1 + (len(stops) > 0)):
                stops.append(event.done)
                raise Stop

    stops: list[float] = []
    for _ in range(2):
        with pytest.raises(Stop):
            run(source, tmp_path / "stopped", stopping)
    assert digest(run(source, tmp_path / "stopped", lambda e: heard.append(getattr(e, "done", 1e9)))) == digest(
        undisturbed
    )
    counts = [count for count in heard if count < 1e9]
    assert counts == sorted(set(counts)), "a row was gathered twice"


def test_killed_and_gone_on(tmp_path: Path, folder: Path) -> None:
    """kill -9 after 5,000 rows of which two parts of 2,000 are closed: the rerun reads from row 4,000."""
    source = sources(folder)["huggingface"]
    undisturbed = run(source, tmp_path / "whole")
    place = tmp_path / "killed"
    (place / "scratch").mkdir(parents=True)
    argument = config(source, place).model_dump_json()
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED, argument, str(place), "5000"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    assert child.stdout.readline() == b"5000\n"
    os.kill(child.pid, signal.SIGKILL)
    child.communicate()
    done: list[float] = []
    again = run(source, place, lambda event: done.append(event.done))
    assert done[0] == 5_000, "the first batch behind the 4,000 rows that were kept"
    assert digest(again) == digest(undisturbed)


def test_changed_data_is_read_anew(tmp_path: Path, folder: Path) -> None:
    source = sources(folder)["huggingface"]
    run(source, tmp_path)
    table = pa.table({"body": ["new"], "name": ["new"]})
    pq.write_table(table, folder / "train-00002-of-00003.parquet")
    rows = pq.read_table(run(source, tmp_path) / "x" / "documents.parquet").to_pylist()
    assert len(rows) == ROWS - len(range(2, ROWS, 3)) + 1
    assert rows[-1]["text"] == "new"


def test_a_finished_source_is_not_read_again(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = sources(folder)["huggingface"]
    first = digest(run(source, tmp_path))
    monkeypatch.setattr("datasets.load_dataset", None)
    assert digest(run(source, tmp_path)) == first


def test_a_bad_row_late_keeps_what_came_before(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    lines = [json.dumps({"text": f"row {n}"}) + "\n" for n in range(3_000)]
    path.write_text("".join(lines[:2_500]) + "{broken\n")
    source = {"kind": "files", "paths": [str(path)]}
    with pytest.raises(BadInput, match=r"rows\.jsonl, line 2501: no JSON"):
        run(source, tmp_path)
    assert not (tmp_path / "raw").exists()
    path.write_text("".join(lines))
    assert pq.read_metadata(run(source, tmp_path) / "x" / "documents.parquet").num_rows == 3_000


def test_sentences_become_documents(tmp_path: Path) -> None:
    """The layout of the Hub's converted branch: no README, Parquet files in <config>/<split>/."""
    folder = tmp_path / "books" / "plain_text" / "train"
    folder.mkdir(parents=True)
    for shard in range(2):
        sentences = [f"sentence {shard * 7 + n} ." for n in range(7)]
        pq.write_table(pa.table({"text": sentences}), folder / f"{shard:04d}.parquet")
    events: list[Event] = []
    raw = run({"kind": "bookcorpus", "path": str(tmp_path / "books"), "sentences": 4}, tmp_path, events.append)
    rows = pq.read_table(raw / "x" / "documents.parquet").to_pylist()
    assert [row["text"].count("sentence") for row in rows] == [4, 4, 4, 2]
    assert rows[1]["text"] == "sentence 4 . sentence 5 . sentence 6 . sentence 7 ."
    assert any("gave no licence" in getattr(event, "text", "") for event in events)
    assert "bookcorpus" not in {source.kind for source in AcquireConfig().sources}


def test_the_same_rows_whatever_the_compression(tmp_path: Path) -> None:
    rows = "".join(json.dumps({"text": f"row {n}"}) + "\n" for n in range(10)).encode()
    (tmp_path / "a.jsonl").write_bytes(rows)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(rows))
    with pa.output_stream(str(tmp_path / "c.jsonl.zst"), compression="zstd") as file:
        file.write(rows)
    raw = run({"kind": "files", "paths": [str(tmp_path / "*.jsonl*")]}, tmp_path)
    texts = pq.read_table(raw / "x" / "documents.parquet")["text"].to_pylist()
    assert texts == [f"row {n}" for n in range(10)] * 3

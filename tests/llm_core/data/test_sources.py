"""Datasets and files as sources: the same rows by either way, and clear sentences for what cannot be read."""

from __future__ import annotations

import gzip
import json
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from llm_core.contract import BadInput
from llm_core.data import acquire
from llm_core.settings.acquire import AcquireConfig, Columns, FilesSource, HuggingFaceSource

DIALOGUES = [
    {"instruction": "Say hello.", "input": "", "output": "Hello."},
    {"instruction": "Translate.", "input": "Hallo", "output": "Hello"},
]
MESSAGES = [{"messages": [{"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "Hi!"}]}]
PREFERENCES = [
    {"prompt": "Which?", "chosen": "This.", "rejected": "That."},
    {"chosen": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "good"}],
     "rejected": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "bad"}]},
]  # fmt: skip


def acquired(tmp_path: Path, source: Any, what: str) -> list[dict[str, Any]]:
    config = AcquireConfig(sources=(source,), store=tmp_path / "store")
    acquire.run(config, out=tmp_path / "raw", scratch=tmp_path, emit=lambda _: None)
    return pq.read_table(tmp_path / "raw" / source.name / f"{what}.parquet").to_pylist()


def jsonl(path: Path, rows: list[dict[str, Any]]) -> str:
    with gzip.open(path, "wt") if path.suffix == ".gz" else open(path, "w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return str(path)


def test_files_of_every_kind(tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    (docs / "sub").mkdir(parents=True)
    (docs / "a.txt").write_text("plain")
    (docs / "b.md").write_bytes("Größe".encode("latin-1"))
    (docs / "sub" / "c.html").write_text("<p>page</p>")
    (docs / "ignored.bin").write_bytes(b"\0")
    jsonl(docs / "d.jsonl.gz", [{"body": "row 1"}, {"body": "row 2"}])
    pq.write_table(pa.table({"body": ["row 3"]}), docs / "e.parquet")
    source = FilesSource(
        kind="files", name="mine", licence="MIT", paths=(f"{docs}/**/*",), columns=Columns(text="body")
    )
    rows = acquired(tmp_path, source, "documents")
    assert [row["text"] for row in rows] == ["plain", "Größe", "row 1", "row 2", "row 3", "<p>page</p>"]
    assert [row["content_type"] for row in rows][-1] == "text/html"
    assert {row["licence"] for row in rows} == {"MIT"}


@pytest.mark.parametrize("kind", ["files", "huggingface"])
@pytest.mark.parametrize("holds", ["text", "dialogues", "messages", "preferences"])
def test_the_same_rows_from_files_and_from_a_dataset_folder(tmp_path: Path, kind: str, holds: str) -> None:
    rows = {
        "text": [{"text": "one"}, {"text": "two"}],
        "dialogues": DIALOGUES,
        "messages": MESSAGES,
        "preferences": PREFERENCES[:1],
    }[holds]
    folder = tmp_path / "set"
    folder.mkdir()
    jsonl(folder / "rows.jsonl", rows)
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: rows.jsonl\n---\n"
    )
    what = "dialogues" if holds == "messages" else holds
    source: Any = (
        FilesSource(kind="files", name="x", paths=(f"{folder}/*.jsonl",), holds=what)
        if kind == "files"
        else HuggingFaceSource(kind="huggingface", name="x", path=str(folder), holds=what)
    )
    found = acquired(tmp_path, source, "documents" if what == "text" else what)
    if holds == "text":
        assert [row["text"] for row in found] == ["one", "two"]
    elif holds == "dialogues":
        assert [row["messages"][0]["content"] for row in found] == ["Say hello.", "Translate.\n\nHallo"]
    elif holds == "messages":
        assert found[0]["messages"] == [
            {"role": "user", "content": "Hi?"},
            {"role": "assistant", "content": "Hi!"},
        ]
    else:
        assert (found[0]["chosen"], found[0]["rejected"]) == ("This.", "That.")


def test_preferences_given_as_conversations(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "p.jsonl", PREFERENCES[1:])
    rows = acquired(tmp_path, FilesSource(kind="files", name="p", paths=(path,), holds="preferences"), "preferences")
    assert rows[0]["prompt"] == [{"role": "user", "content": "Q"}]
    assert (rows[0]["chosen"], rows[0]["rejected"]) == ("good", "bad")


def test_real_instruction_data(tmp_path: Path, shared_data: Path) -> None:
    rows = json.loads((shared_data / "sft_rasbt" / "instruction-data.json").read_text())
    path = jsonl(tmp_path / "rows.jsonl", rows)
    source = FilesSource(kind="files", name="rasbt", paths=(path,), holds="dialogues", limit=1_000)
    found = acquired(tmp_path, source, "dialogues")
    assert len(found) == 1_000
    assert found[0]["messages"][1]["content"] == rows[0]["output"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"other": 1}\n', "no column 'text'"),
        ('{"text": 1\n', "line 1: no JSON"),
        ("[1]\n", "a JSON object is needed"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "x.jsonl").write_text(content)
    with pytest.raises(BadInput, match=message):
        acquired(tmp_path, FilesSource(kind="files", name="x", paths=(f"{tmp_path}/x.jsonl",)), "documents")
    assert not (tmp_path / "raw").exists()


def test_what_is_not_there_is_said_at_once(tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(BadInput, match="no local folder"):
        acquired(tmp_path, HuggingFaceSource(kind="huggingface", name="x", path="no/such"), "documents")
    with pytest.raises(BadInput, match="matches no file"):
        acquired(tmp_path, FilesSource(kind="files", name="x", paths=("nowhere/*.txt",)), "documents")
    assert time.monotonic() - started < 8


@pytest.mark.parametrize(
    "sources",
    [
        [{"kind": "web", "name": "a", "start": ["ftp://x"], "contact": "a@b"}],
        [{"kind": "web", "name": "a", "start": ["http://x"]}],
        [{"kind": "unknown", "name": "a"}],
        [{"kind": "problems"}, {"kind": "problems"}],
        [{"kind": "problems", "count": 0}],
        [{"kind": "problems", "surprise": 1}],
        [{"kind": "problems", "name": "Not a slug"}],
        [],
    ],
)
def test_wrong_settings_are_refused(sources: list[dict[str, Any]]) -> None:
    with pytest.raises(ValidationError):
        AcquireConfig.model_validate({"sources": sources})

"""Datasets and files as sources: the same rows by either way, and clear sentences for what cannot be read."""

from __future__ import annotations

import dataclasses
import gzip
import json
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from llm_core.artifacts import read_manifest
from llm_core.contract import BadInput, Note, Report
from llm_core.data import acquire
from llm_core.data.sources.rows import Columns as PartColumns
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


def hub_folder(folder: Path, file: Path) -> str:
    """A local folder in the Hub's layout whose only data file is linked, not copied."""
    folder.mkdir()
    (folder / file.name).symlink_to(file)
    (folder / "README.md").write_text(
        f"---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: {file.name}\n---\n"
    )
    return str(folder)


REAL = {  # file, what it holds, columns, rows, rows that cannot be used
    "dolly": ("sft_dolly/dolly_first6400_nocontext.jsonl.gz", "dialogues", {"output": "response"}, 6_400, {}),
    "gsm8k": ("gsm8k/train.jsonl", "dialogues", {"instruction": "question", "output": "answer"}, 7_473, {}),
    "gsm8k as text": ("gsm8k/test.jsonl", "text", {"text": "question"}, 1_319, {}),
    "helpful": ("hh_rlhf/helpful-base.test.jsonl.gz", "preferences", {}, 2_354, {"skipped prompts_differ": 9}),
    "harmless": ("hh_rlhf/harmless-base.test.jsonl.gz", "preferences", {}, 2_312, {"skipped prompts_differ": 5}),
    "rasbt preferences": ("pref_rasbt/instruction-data-with-preference.json", "preferences", {}, 1_100, {}),
    "rasbt": ("sft_rasbt/instruction-data.json", "dialogues", {}, 1_100, {}),
}


@pytest.mark.parametrize("name", REAL)
def test_real_datasets_give_the_same_by_both_ways(tmp_path: Path, shared_data: Path, name: str) -> None:
    """Published data of four makers, whole, read in place: as files, and as a dataset in the Hub's layout."""
    file, holds, columns, count, skipped = REAL[name]
    what = "documents" if holds == "text" else holds
    path = shared_data / file
    ways = []
    for kind, where in (
        ("files", {"paths": [str(path)]}),
        ("huggingface", {"path": hub_folder(tmp_path / "hub", path)}),
    ):
        values = {"kind": kind, "name": "real", "licence": "CC-BY-4.0", "holds": holds, "columns": columns, **where}
        config = AcquireConfig.model_validate({"sources": [values], "store": str(tmp_path)})
        report = acquire.run(config, out=tmp_path / kind, scratch=tmp_path / f"s-{kind}", emit=lambda _: None)
        rows = pq.read_table(tmp_path / kind / "real" / f"{what}.parquet").to_pylist()
        told = {key: value for key, value in report.tables["sources"][0].items() if key.startswith("skipped")}
        assert (len(rows), told) == (count - sum(skipped.values()), skipped)
        ways.append(rows)
    assert ways[0] == ways[1]
    if holds == "preferences":
        for row in ways[0]:
            assert row["prompt"][-1]["role"] == "user"
            assert row["prompt"][0]["role"] == "user"


def test_a_transcript_is_taken_apart_as_published(tmp_path: Path, shared_data: Path) -> None:
    path = shared_data / "hh_rlhf" / "helpful-base.test.jsonl.gz"
    with gzip.open(path, "rt") as file:
        published = [json.loads(line) for line in file]
    asked = [[pair[key].rpartition("\n\nAssistant:")[0] for key in ("chosen", "rejected")] for pair in published]
    published = [pair for pair, (chosen, rejected) in zip(published, asked, strict=True) if chosen == rejected]
    source = FilesSource(kind="files", name="hh", paths=(str(path),), holds="preferences")
    for row, pair in zip(acquired(tmp_path, source, "preferences"), published, strict=True):
        names = {"user": "Human", "assistant": "Assistant"}
        for answer, whole in (("chosen", pair["chosen"]), ("rejected", pair["rejected"])):
            turns = [*row["prompt"], {"role": "assistant", "content": row[answer]}]
            again = "".join(f"\n\n{names[turn['role']]}: {turn['content']}" for turn in turns)
            assert again.split() == whole.split()


def test_rows_that_cannot_be_used_are_counted(tmp_path: Path) -> None:
    ask = [{"role": "user", "content": "Q"}]
    good, bad = ({"role": "assistant", "content": word} for word in ("good", "bad"))
    path = jsonl(
        tmp_path / "p.jsonl",
        [
            {"chosen": [*ask, good], "rejected": [*ask, bad]},
            {"chosen": [*ask, good], "rejected": [{"role": "user", "content": "other"}, bad]},
            {"chosen": [*ask, good], "rejected": ask},
            {"chosen": [], "rejected": []},
        ],
    )
    source = FilesSource(kind="files", name="p", paths=(path,), holds="preferences")
    assert len(acquired(tmp_path, source, "preferences")) == 1
    facts = read_manifest(tmp_path / "raw", "raw")["facts"]["sources"]["p"]
    told = {key: value for key, value in facts.items() if key.startswith("skipped")}
    assert told == {"skipped prompts_differ": 1, "skipped no_answer": 1, "skipped empty_conversation": 1}


def test_files_that_cannot_be_read_are_named_and_cost_nothing_else(tmp_path: Path, shared_data: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "a.html.gz").write_bytes(gzip.compress(b"<p>packed</p>"))
    with pa.output_stream(str(docs / "b.md.zst"), compression="zstd") as file:
        file.write(b"# packed")
    (docs / "c.txt.gz").write_bytes(gzip.compress(b"cut off" * 100)[:-20])
    (docs / "d.txt").write_bytes(b"\0\1\2 binary")
    (docs / "e.txt").write_bytes(b"long " * 1_000)
    (docs / "f.TXT").write_bytes("Größe".encode("utf-16"))
    (docs / "g.pdf").write_bytes(b"%PDF-1.7")
    (docs / "h.warc.gz").symlink_to(shared_data / "warc" / "warcio" / "example.warc.gz")
    (docs / "i.warc").symlink_to(shared_data / "warc" / "warcio" / "example-trunc.warc")
    notes: list[Any] = []
    source = FilesSource(kind="files", name="mine", paths=(str(docs),), max_bytes=2_000)
    config = AcquireConfig(sources=(source,), store=tmp_path / "store")
    report: Report = acquire.run(config, out=tmp_path / "raw", scratch=tmp_path / "s", emit=notes.append)
    rows = pq.read_table(tmp_path / "raw" / "mine" / "documents.parquet").to_pylist()
    assert [row["text"][:9] for row in rows] == ["<p>packed", "# packed", "Größe", "<!doctype", "<!doctype"]
    assert [row["url"] for row in rows[-2:]] == ["http://example.com/"] * 2
    named = {Path(str(row["file"])).name: str(row["problem"]) for row in report.tables["unreadable"]}
    assert set(named) == {"c.txt.gz", "d.txt", "e.txt", "i.warc"}
    assert "Invalid WARC header at byte 1,197" in named["i.warc"]
    assert report.tables["sources"][0]["skipped unreadable"] == 4
    assert read_manifest(tmp_path / "raw", "raw")["facts"]["sources"]["mine"]["ignored files"] == {".pdf": 1}
    assert sum(isinstance(note, Note) and "left out" in note.text for note in notes) == 4


def test_weight_kind_and_licence_stand_in_the_manifest(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "x.jsonl", [{"text": "one", "by": "CC0-1.0"}, {"text": "\ud800 two", "by": ""}])
    source = FilesSource(
        kind="files", name="x", paths=(path,), weight=2.5, licence="MIT", columns=Columns(licence="by", group="by")
    )
    rows = acquired(tmp_path, source, "documents")
    assert [(row["licence"], row["group"]) for row in rows] == [("CC0-1.0", "CC0-1.0"), ("MIT", None)]
    assert rows[1]["text"] == "\ufffd two", "half a character in JSON is no reason to fail"
    facts = read_manifest(tmp_path / "raw", "raw")["facts"]["sources"]["x"]
    assert (facts["kind"], facts["licence"], facts["weight"], facts["documents"]) == ("files", "MIT", 2.5, 2)


def test_the_settings_and_the_part_know_the_same_columns() -> None:
    """The part takes plain arguments and repeats the settings' columns: they must not drift apart."""
    assert {name: field.default for name, field in Columns.model_fields.items()} == {
        field.name: field.default for field in dataclasses.fields(PartColumns)
    }


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
        ('{"text": "a"}\n\n{"text"\n', r"x\.jsonl, line 3: no JSON"),
        ('{"text": "a"}\n\n{"other": 1}\n', r"x\.jsonl, line 3: a row has no column 'text'"),
        ('{"text": "a"}\n\xff\n', "line 2: no JSON"),
        ("[" * 100_000 + "\n", "line 1: no JSON"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "x.jsonl").write_bytes(content.encode("latin-1"))
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
        [{"kind": "problems", "weight": 0}],
        [{"kind": "problems", "weight": float("inf")}],
        [{"kind": "common_crawl", "name": "a", "crawl": "CC", "prefix": "s3://commoncrawl"}],
        [{"kind": "wikipedia", "name": "a", "date": "2023"}],
        [{"kind": "bookcorpus", "name": "a", "sentences": 0}],
        [{"kind": "problems", "name": "Not a slug"}],
        [],
    ],
)
def test_wrong_settings_are_refused(sources: list[dict[str, Any]]) -> None:
    with pytest.raises(ValidationError):
        AcquireConfig.model_validate({"sources": sources})

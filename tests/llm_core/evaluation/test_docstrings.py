"""The generated benchmark: fresh items only, one true answer among four, and the same bytes for the same seed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llm_core.evaluation.benchmarks.docstrings import Benchmark, generate

LONG = "return the list of all open connections that the pool has given out since it was made"
PAGE = (
    "This page explains at some length how one reads a file line by line without holding all of it in memory, "
    "and it says at the end which object is {}. More follows here."
)


def dialogue(name: str, split: str, question: str, answer: str, kind: str = "docstring") -> dict[str, Any]:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"id": name, "split": split, "kind": kind, "messages": turns}


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    dialogues = [
        dialogue(f"v{i:02d}", "validation", f"What does f{i} do?", f"Compute the {i} value.") for i in range(20)
    ]
    dialogues += [
        dialogue("v-long-seen", "validation", "What does pool do?", f"Ask it to {LONG}."),
        dialogue("v-short-seen", "validation", "What does g do?", "Return g."),
        dialogue("v-short-fresh", "validation", "What does h do?", "Return g."),
        dialogue("v-problem", "validation", "2 + 2 = ?", "4", "problem"),
        dialogue("t0", "train", "What does  G do?", "return G"),
    ]
    documents = [
        {"id": "d0", "split": "train", "text": f"Some page. One may {LONG.upper()}, it says. {PAGE.format('closed')}"},
        {"id": "d1", "split": "validation", "text": PAGE.format("opened")},
        {"id": "d2", "split": "validation", "text": PAGE.format("closed")},
        {"id": "d3", "split": "validation", "text": "Too short to ask about anything."},
    ]
    pq.write_table(pa.Table.from_pylist(dialogues), tmp_path / "dialogues.parquet")
    pq.write_table(pa.Table.from_pylist(documents), tmp_path / "documents.parquet")
    return tmp_path


def made(corpus: Path, seed: int = 0) -> Benchmark:
    return generate(corpus, choices=100, cloze=100, seed=seed)


def test_what_training_has_seen_is_dropped_and_counted(corpus: Path) -> None:
    benchmark = made(corpus)
    ids = {item.id for item in benchmark.choices}
    assert "v-long-seen" not in ids
    assert "v-short-seen" not in ids
    assert "v-problem" not in ids
    assert "v-short-fresh" in ids
    assert len(ids) == 21
    assert benchmark.dropped_choices == 2
    assert sorted(item.answer for item in benchmark.cloze) == ["here", "opened"]
    assert benchmark.dropped_cloze == 2


def test_each_question_has_four_different_choices_and_its_own_answer(corpus: Path) -> None:
    turns = {row["id"]: row["messages"] for row in pq.read_table(corpus / "dialogues.parquet").to_pylist()}
    benchmark = made(corpus)
    for item in benchmark.choices:
        assert len(set(item.choices)) == 4
        assert item.question == turns[item.id][0]["content"]
        assert item.choices[item.answer] == turns[item.id][1]["content"]
    assert len({item.answer for item in benchmark.choices}) > 1
    for cloze in benchmark.cloze:
        assert f"{cloze.context} {cloze.answer}." in PAGE.format("opened")


def test_seeds(corpus: Path) -> None:
    assert made(corpus) == made(corpus)
    assert made(corpus, 1).choices != made(corpus, 2).choices
    assert len(generate(corpus, choices=5, cloze=0, seed=0).choices) == 5
    assert generate(corpus, choices=5, cloze=0, seed=0).cloze == ()


def test_as_a_command(corpus: Path, root: Path) -> None:
    out = corpus / "set.jsonl"
    command = [sys.executable, "-m", "llm_core.evaluation.benchmarks.docstrings", corpus, out, "--choices", "7"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    items = [json.loads(line) for line in out.read_text().splitlines()]
    assert [item["kind"] for item in items] == ["choice"] * 7 + ["cloze"] * 2
    assert "7 questions (2 dropped" in done.stdout

"""A small world for tests of later stages: a corpus of problems and pages, its shards, and a chat model that half knows."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest


@dataclass(frozen=True)
class SmallWorld:
    """Product directories; `chat` was trained for seconds on very small sums."""

    corpus: Path
    shards: Path
    base: Path
    chat: Path


PAGES = [
    f"The module {name} reads and writes {thing} files. It opens the file, reads each line of it in turn and closes it "
    f"when the last line was read. If the file cannot be found an error is raised, and the caller has to handle the "
    f"{problem}. Write {thing} data with the {name} writer, which returns the number of lines that were {done}."
    for name, thing, problem, done in zip(
        ("csv", "json", "mail", "zip", "html", "wave", "tar", "audio"),
        ("text", "binary", "plain", "packed", "marked", "sound", "archived", "loud"),
        ("failure", "warning", "signal", "trouble", "message", "mishap", "fault", "noise"),
        ("written", "stored", "counted", "saved", "kept", "copied", "joined", "added"),
        strict=True,
    )
]


def sums() -> list[dict[str, Any]]:
    """Sums of digits as checked dialogues: 100, in three splits."""
    rows = []
    for a in range(10):
        for b in range(10):
            split = {0: "validation", 1: "feedback", 2: "feedback"}.get((3 * a + b) % 5, "train")
            rows.append(dialogue(f"{a} + {b} = ?", str(a + b), "problem", split, f"{a} + {b}"))
    return rows


def dialogue(question: str, answer: str, kind: str, split: str, check: str | None = None) -> dict[str, Any]:
    """A row of dialogues.parquet."""
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    name = hashlib.sha256(question.encode()).hexdigest()[:32]
    row = {"id": name, "source": "small", "url": "", "group": question, "split": split, "kind": kind}
    return row | {"messages": turns, "check": check}


@pytest.fixture(scope="session")
def small_world(tmp_path_factory: pytest.TempPathFactory) -> SmallWorld:
    """Made once a session, in a few seconds, by the project's own tokenize and training loop."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from llm_core.artifacts import new_product
    from llm_core.data.tokenize import run as tokenize
    from llm_core.settings.tokenize import TokenizeConfig

    root = tmp_path_factory.mktemp("world")
    questions = [
        dialogue(
            f"What does the function {n} do?", f"Return the {n} of it.", "docstring", "validation" if i % 2 else "train"
        )
        for i, n in enumerate(("size", "name", "date", "path", "list", "value", "mode", "lines", "host", "port"))
    ]
    documents = [
        {"id": f"d{i}", "source": "small", "url": f"d{i}", "title": "", "text": text, "language": "en", "licence": "CC0-1.0",
         "date": None, "group": f"d{i}", "split": "validation" if i % 3 == 0 else "train"}
        for i, text in enumerate(PAGES)
    ]  # fmt: skip
    with new_product(root / "corpus", "corpus") as folder:
        pq.write_table(pa.Table.from_pylist([*sums(), *questions]), folder / "dialogues.parquet")
        pq.write_table(pa.Table.from_pylist(documents), folder / "documents.parquet")
    (root / "scratch").mkdir()
    tokenize(
        TokenizeConfig.model_validate({"vocab_size": 400}),
        corpus=root / "corpus", out=root / "shards", scratch=root / "scratch", emit=lambda event: None,
    )  # fmt: skip
    return SmallWorld(root / "corpus", root / "shards", *_models(root))

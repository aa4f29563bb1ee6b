"""A corpus from a few rows, as clean writes it, and the stage over it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llm_core.artifacts import new_product
from llm_core.contract import Event, Report
from llm_core.data import tokenize
from llm_core.data.document import DIALOGUES, DOCUMENTS, identity, split_of
from llm_core.data.shards import Shards
from llm_core.settings.tokenize import TokenizeConfig

Row = dict[str, Any]
SENTENCE = "the cat and a dog went to town for bread milk old new red green blue house tree river bird stone"
WORDS = SENTENCE.split()


def document(text: str, source: str = "one", split: str | None = None) -> Row:
    """A row of documents.parquet; its id is that of its text, and so is its split unless one is given."""
    key = identity(text)
    return {"id": key, "source": source, "text": text, "split": split or split_of(key, 0.2), "group": key}


def dialogue(question: str, answer: str, split: str = "train") -> Row:
    """A row of dialogues.parquet."""
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    row = {"id": identity(question), "source": "talk", "split": split, "kind": "dialogue", "messages": turns}
    return row | {"group": question}


def plain_documents(count: int, source: str = "one") -> list[Row]:
    """Documents of some words each, all different."""
    texts = (
        " ".join(WORDS[(number * step + step) % len(WORDS)] for step in range(1, 30)) + f" {source} {number}."
        for number in range(count)
    )
    return [document(text, source) for text in texts]


@pytest.fixture(scope="session")
def make_corpus() -> Callable[..., Path]:
    """Write rows as a corpus product; `weights` stand in its manifest as acquire's do."""

    def make(
        out: Path,
        documents: Sequence[Row],
        dialogues: Sequence[Row] = (),
        weights: Mapping[str, float] | None = None,
        row_group: int = 7,
    ) -> Path:
        facts: dict[str, Any] = {"text_bytes": sum(len(row["text"] or "") for row in documents)}
        if weights is not None:
            facts["weights"] = dict(weights)
        with new_product(out, "corpus", facts) as folder:
            for name, rows, schema in (("documents", documents, DOCUMENTS), ("dialogues", dialogues, DIALOGUES)):
                table = pa.Table.from_pylist(list(rows), schema=schema)
                pq.write_table(table, folder / f"{name}.parquet", row_group_size=row_group)
        return out

    return make


@pytest.fixture(scope="session")
def run_stage() -> Callable[..., tuple[Shards, Report]]:
    """Tokenize a corpus; the shards, opened, and the report."""

    def run(corpus: Path, place: Path, **settings: Any) -> tuple[Shards, Report]:
        config = TokenizeConfig.model_validate({"vocab_size": 320, "workers": 1} | settings)
        (place / "scratch").mkdir(parents=True, exist_ok=True)
        events: list[Event] = []
        out = place / "shards"
        report = tokenize.run(config, corpus=corpus, out=out, scratch=place / "scratch", emit=events.append)
        return Shards.open(out), report

    return run


@pytest.fixture(scope="session")
def rows_of() -> Any:
    """The builders of rows."""

    class Rows:
        document = staticmethod(document)
        dialogue = staticmethod(dialogue)
        plain = staticmethod(plain_documents)

    return Rows


@pytest.fixture(scope="session")
def texts_of() -> Callable[[Shards, str], list[str]]:
    """The texts of a split's documents, read back from shards; each must end with the end token, and only there."""

    def texts(shards: Shards, split: str) -> list[str]:
        tokens, offsets = shards.tokens(split), shards.offsets(split)
        found = []
        for start, stop in itertools.pairwise(offsets):
            ids = tokens[int(start) : int(stop)].tolist()
            assert ids[-1] == shards.tokenizer.end_id
            assert max(ids[:-1], default=0) < len(shards.tokenizer.ranks)
            found.append(shards.tokenizer.decode(ids[:-1]))
        return found

    return texts

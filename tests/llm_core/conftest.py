"""A small world for tests of later stages: a corpus of problems and pages, its shards, a model that half knows."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest


@dataclass(frozen=True)
class SmallWorld:
    """Product directories; `chat` was trained for seconds on the larger of two digits."""

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


def largest() -> list[dict[str, Any]]:
    """The larger of two digits, as checked dialogues: 100, in three splits."""
    rows = []
    for a in range(10):
        for b in range(10):
            split = {0: "validation", 1: "feedback", 2: "feedback"}.get((3 * a + b) % 5, "train")
            rows.append(dialogue(f"max({a}, {b}) = ?", str(max(a, b)), "problem", split, f"max({a}, {b})"))
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
        {"id": f"d{i}", "source": "small", "url": f"d{i}", "title": "", "text": text, "language": "en",
         "licence": "CC0-1.0", "date": None, "group": f"d{i}", "split": "validation" if i % 3 == 0 else "train"}
        for i, text in enumerate(PAGES)
    ]  # fmt: skip
    facts = {"text_bytes": sum(len(text.encode()) for text in PAGES)}
    with new_product(root / "corpus", "corpus", facts) as folder:
        pq.write_table(pa.Table.from_pylist([*largest(), *questions]), folder / "dialogues.parquet")
        pq.write_table(pa.Table.from_pylist(documents), folder / "documents.parquet")
    (root / "scratch").mkdir()
    tokenize(
        TokenizeConfig.model_validate({"vocab_size": 400}),
        corpus=root / "corpus", out=root / "shards", scratch=root / "scratch", emit=lambda event: None,
    )  # fmt: skip
    return SmallWorld(root / "corpus", root / "shards", *_models(root))


def _models(root: Path) -> tuple[Path, Path]:
    """An untrained base and a chat model that saw every training dialogue some twenty times."""
    import torch

    from llm_core.artifacts import new_product
    from llm_core.data.shards import Shards
    from llm_core.model.checkpoint import save_model
    from llm_core.model.config import ModelConfig
    from llm_core.model.transformer import Transformer
    from llm_core.train.batches import DialogueBatches, next_token_loss
    from llm_core.train.loop import LoopOptions, fit
    from llm_core.train.optim import OptimizerOptions, make_optimizer
    from llm_core.train.schedule import cosine

    torch.manual_seed(0)
    shards = Shards.open(root / "shards")
    config = ModelConfig.preset("qwen3", vocab_size=shards.vocab_size, layers=2, heads=2, width=32, context=96)
    model = Transformer(config)
    with new_product(root / "base", "base") as folder:
        save_model(model, folder, shards.tokenizer, "base")
    found = shards.dialogues("train")
    groups = [(list(range(len(found))), 16)]
    fit(
        model,
        batch=DialogueBatches(found.tokens, found.mask, found.offsets, groups, context=96, seed=0),  # type: ignore[arg-type]
        objective=next_token_loss,
        optimizer=make_optimizer(model, OptimizerOptions(name="muon", learning_rate=0.01)),
        schedule=cosine(40),
        options=LoopOptions(40),
        scratch=root / "scratch",
        emit=lambda event: None,
    )
    with new_product(root / "chat", "chat") as folder:
        save_model(model, folder, shards.tokenizer, "chat")
    return root / "base", root / "chat"

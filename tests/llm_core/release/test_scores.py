"""What evaluate writes is what the gate reads."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm_core.artifacts import dump_json, new_product
from llm_core.contract import BadInput
from llm_core.evaluation.rows import Row, write_rows
from llm_core.release.scores import read_scores


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    def row(prompt: str, mode: str, score: float, sample: int = 0, **more: str) -> Row:
        fields = {"model": "chat", "task": "problems", "baseline": ""} | more
        return Row(prompt_id=prompt, mode=mode, score=score, sample=sample, prompt="?", answer="!", **fields)  # type: ignore[arg-type]

    rows = [
        row("p2", "sampled", 1.0, 0), row("p2", "sampled", 0.0, 1), row("p1", "sampled", 1.0), row("p1", "greedy", 1.0),
        row("p1", "greedy", 0.0, baseline="shuffled"), row("p1", "greedy", 0.0, model="aligned"),
        row("q1", "likelihood", 1.0, task="docstring_choice"), row("s1", "greedy", 1.0, task="safety_refusals"),
    ]  # fmt: skip
    figures = {"bits_per_byte": 1.5, "mean_length": 3.0, "ended": 0.9}
    summary = {"evaluation_set": "e", "pages": "p", "models": {"chat": figures}}
    with new_product(tmp_path / "scores", "scores") as inside:
        write_rows(inside / "rows.parquet", rows)
        (inside / "summary.json").write_bytes(dump_json(summary))
    return tmp_path / "scores"


def test_scores_of_one_model(folder: Path) -> None:
    scores = read_scores(folder, "chat")
    assert scores.sampled == {"p1": 1.0, "p2": 0.5}
    assert scores.greedy == {"p1": 1.0}
    assert scores.lengths == {"p1": 1.0, "p2": 1.0}
    assert scores.safety == {"safety_refusals": {"s1": 1.0}}
    assert (scores.evaluation_set, scores.pages, scores.model) == ("e", "p", "chat")
    assert (scores.bits_per_byte, scores.mean_length, scores.ended, scores.kl_from_chat) == (1.5, 3.0, 0.9, None)


def test_absent_scores_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="'aligned'"):
        read_scores(folder, "aligned")
    with pytest.raises(BadInput, match="no whole product"):
        read_scores(tmp_path / "nothing", "chat")

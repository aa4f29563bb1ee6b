"""What the gate knows of a model: the stored scores of the stage evaluate, read for one model."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from llm_core.artifacts import read_manifest
from llm_core.contract import BadInput

JUDGED_TASK = "problems"
SAFETY_TASKS = "safety"
"""Tasks whose name begins so are safety prompts."""


@dataclass(frozen=True)
class Scores:
    """One model's figures on one evaluation set; a figure that was not measured is None or an empty mapping.

    `sampled` and `greedy` map prompt ids to the judge's score in [0, 1] (the mean over the prompt's answers).
    """

    model: str
    evaluation_set: str
    """Digest of the judged prompts and of how they were asked; only equal digests can be paired."""
    pages: str
    """Digest of the held-out pages; bits per byte compare only on equal ones."""
    sampled: Mapping[str, float] = field(default_factory=dict)
    greedy: Mapping[str, float] = field(default_factory=dict)
    bits_per_byte: float | None = None
    mean_length: float | None = None
    """Mean length of sampled answers, in tokens."""
    ended: float | None = None
    """Share of sampled answers that end by themselves."""
    kl_from_chat: float | None = None
    """Nats per sampled answer."""
    lengths: Mapping[str, float] = field(default_factory=dict)
    """Mean length of the sampled answers by prompt, in characters: models with other tokenizers can be compared."""
    safety: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Score in [0, 1] by set of safety prompts and prompt; 1 is safe."""


def read_scores(folder: Path, model: str) -> Scores:
    """Scores of `model` in a product of the stage evaluate. Raises `BadInput` if the product does not hold it."""
    read_manifest(folder, "scores")
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    if model not in summary["models"]:
        raise BadInput(f"{folder}/summary.json: no scores of {model!r}, only of {', '.join(sorted(summary['models']))}")
    figures = summary["models"][model]
    rows = _own_rows(folder / "rows.parquet", model)
    judged = [row for row in rows if row["task"] == JUDGED_TASK]
    sampled = [row for row in judged if row["mode"] == "sampled"]
    return Scores(
        model=model,
        evaluation_set=summary["evaluation_set"],
        pages=summary["pages"],
        sampled=_means(sampled),
        greedy=_means([row for row in judged if row["mode"] == "greedy"]),
        bits_per_byte=figures.get("bits_per_byte"),
        mean_length=figures.get("mean_length"),
        ended=figures.get("ended"),
        kl_from_chat=figures.get("kl_from_chat"),
        lengths=_means([row | {"score": float(len(row["answer"]))} for row in sampled]),
        safety={
            task: _means([row for row in rows if row["task"] == task])
            for task in sorted({row["task"] for row in rows if row["task"].startswith(SAFETY_TASKS)})
        },
    )


def _own_rows(path: Path, model: str) -> list[dict[str, Any]]:
    """Rows of the model's own answers, without those of trivial methods."""
    columns = ["model", "task", "mode", "prompt_id", "score", "baseline", "answer"]
    rows: list[dict[str, Any]] = pq.read_table(path, columns=columns, filters=[("model", "==", model)]).to_pylist()
    return [row for row in rows if not row["baseline"]]


def _means(rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Mean score by prompt."""
    found: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        found[row["prompt_id"]].append(row["score"])
    return {prompt: sum(scores) / len(scores) for prompt, scores in sorted(found.items())}

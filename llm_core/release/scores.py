"""What the gate knows of a model: the stored scores of the stage evaluate, read for one model."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from llm_core.artifacts import read_manifest
from llm_core.contract import BadInput

JUDGED_TASK = "problems"


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


def read_scores(folder: Path, model: str) -> Scores:
    """Scores of `model` in a product of the stage evaluate. Raises `BadInput` if the product does not hold it."""
    read_manifest(folder, "scores")
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    if model not in summary["models"]:
        raise BadInput(f"{folder}/summary.json: no scores of {model!r}, only of {', '.join(sorted(summary['models']))}")
    figures = summary["models"][model]
    answers = _answers(folder / "rows.parquet", model)
    return Scores(
        model=model,
        evaluation_set=summary["evaluation_set"],
        pages=summary["pages"],
        sampled=answers.get("sampled", {}),
        greedy=answers.get("greedy", {}),
        bits_per_byte=figures.get("bits_per_byte"),
        mean_length=figures.get("mean_length"),
        ended=figures.get("ended"),
        kl_from_chat=figures.get("kl_from_chat"),
    )


def _answers(path: Path, model: str) -> dict[str, dict[str, float]]:
    """Mean score by mode and prompt."""
    table = pq.read_table(path, columns=["model", "task", "mode", "prompt_id", "score", "baseline"])
    sums: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in table.to_pylist():
        if row["model"] == model and row["task"] == JUDGED_TASK and not row["baseline"]:
            sums[row["mode"]][row["prompt_id"]].append(row["score"])
    return {mode: {key: sum(v) / len(v) for key, v in sorted(prompts.items())} for mode, prompts in sums.items()}

"""What the stage evaluate keeps: one row per model, prompt and answer, so that later models can be paired with it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

Mode = Literal["greedy", "sampled", "likelihood"]
SCHEMA = pa.schema(
    [
        ("model", pa.string()),
        ("task", pa.string()),
        ("mode", pa.string()),
        ("baseline", pa.string()),
        ("prompt_id", pa.string()),
        ("sample", pa.int32()),
        ("prompt", pa.string()),
        ("answer", pa.string()),
        ("score", pa.float64()),
        ("tokens", pa.int32()),
        ("finished", pa.bool_()),
        ("reward", pa.float64()),
    ]
)


@dataclass(slots=True)
class Row:
    """The judge's score in [0, 1] of one answer. `baseline` names a trivial method; it is empty for a model's own."""

    model: str
    task: str
    mode: Mode
    prompt_id: str
    prompt: str
    answer: str
    score: float
    baseline: str = ""
    sample: int = 0
    tokens: int | None = None
    finished: bool | None = None
    reward: float | None = None


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write the rows, sorted."""
    ordered = sorted(rows, key=lambda r: (r.model, r.task, r.mode, r.baseline, r.prompt_id, r.sample))
    pq.write_table(pa.Table.from_pylist([asdict(row) for row in ordered], schema=SCHEMA), path)


def prompt_scores(rows: Iterable[Row]) -> dict[str, float]:
    """Mean score by prompt, sorted by prompt id."""
    collected: dict[str, list[float]] = {}
    for row in rows:
        collected.setdefault(row.prompt_id, []).append(row.score)
    return {prompt: sum(scores) / len(scores) for prompt, scores in sorted(collected.items())}


def select(rows: Sequence[Row], model: str, task: str, mode: Mode, baseline: str = "") -> list[Row]:
    """The rows of one model (or baseline) on one task."""
    wanted = (model, task, mode, baseline)
    return [row for row in rows if (row.model, row.task, row.mode, row.baseline) == wanted]

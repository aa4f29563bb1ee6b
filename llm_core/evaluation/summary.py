"""From rows to figures: accuracies with intervals, trivial baselines, and paired differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llm_core.contract import Row as TableRow
from llm_core.evaluation.problems import TASK as PROBLEMS
from llm_core.evaluation.questions import CHOICES, CLOZE
from llm_core.evaluation.rows import Mode, Row, prompt_scores, select
from llm_core.feedback.statistics import Interval, mean_interval, paired_difference

TASKS: Mapping[str, tuple[str, Mode]] = {
    "greedy_accuracy": (PROBLEMS, "greedy"),
    "sampled_accuracy": (PROBLEMS, "sampled"),
    "choice_accuracy": (CHOICES, "likelihood"),
    "cloze_accuracy": (CLOZE, "likelihood"),
}
Intervals = dict[str, Interval]


def intervals(rows: Sequence[Row], model: str, resamples: int, seed: int) -> Intervals:
    """Mean score by task with a 95% interval over prompts; tasks without rows are left out."""
    found = {}
    for name, (task, mode) in TASKS.items():
        scores = list(prompt_scores(select(rows, model, task, mode)).values())
        if scores:
            found[name] = mean_interval(scores, resamples=resamples, seed=seed)
    return found


def difference(rows: Sequence[Row], model: str, other: str, resamples: int, seed: int) -> Intervals:
    """`model` minus `other` by task, paired over the prompts that both answered."""
    found = {}
    for name, (task, mode) in TASKS.items():
        ours, theirs = (prompt_scores(select(rows, who, task, mode)) for who in (model, other))
        shared = sorted(ours.keys() & theirs.keys())
        if shared:
            found[name] = paired_difference(
                [ours[p] for p in shared], [theirs[p] for p in shared], resamples=resamples, seed=seed
            )
    return found


def baselines(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Mean score of each trivial method by task; a model's shuffled answers carry the model's name."""
    found: dict[str, dict[str, float]] = {}
    for name, (task, mode) in TASKS.items():
        kinds = sorted({(r.baseline, r.model) for r in rows if r.baseline and (r.task, r.mode) == (task, mode)})
        for baseline, model in kinds:
            scores = prompt_scores(select(rows, model, task, mode, baseline)).values()
            label = f"{baseline} {model}".strip()
            found.setdefault(name, {})[label] = sum(scores) / len(scores)
    return found


def answer_figures(rows: Sequence[Row]) -> dict[str, float]:
    """Of sampled answers: mean length in tokens, share that ended by themselves, share of prompts ever solved."""
    if not rows:
        return {}
    best: dict[str, float] = {}
    for row in rows:
        best[row.prompt_id] = max(best.get(row.prompt_id, 0.0), row.score)
    rewards = [row.reward for row in rows if row.reward is not None]
    figures = {
        "mean_length": sum(row.tokens or 0 for row in rows) / len(rows),
        "ended": sum(bool(row.finished) for row in rows) / len(rows),
        "solved_at_least_once": sum(best.values()) / len(best),
    }
    return figures | ({"reward": sum(rewards) / len(rewards)} if rewards else {})


def flat(summary: Mapping[str, Any]) -> dict[str, float]:
    """The summary's single figures as `model_figure`, for the report."""
    found = {
        f"{model}_{name}": float(value)
        for model, figures in summary["models"].items()
        for name, value in figures.items()
        if isinstance(value, int | float)
    }
    for name, interval in summary["differences"]["aligned-chat"].items():
        found |= {f"gain_{name}": interval["value"], f"gain_{name}_low": interval["low"]}
    return found | {name: float(count) for name, count in summary["counts"].items()}


def tables(summary: Mapping[str, Any]) -> dict[str, list[TableRow]]:
    """Accuracies with intervals and baselines, differences, and bits per byte by source."""
    accuracies: list[TableRow] = [
        _line(task, model, interval)
        for model, figures in summary["models"].items()
        for task, interval in figures["intervals"].items()
    ]
    accuracies += [
        {"task": task, "who": f"baseline: {name}", "value": round(value, 4), "low": None, "high": None, "prompts": None}
        for task, methods in summary["baselines"].items()
        for name, value in methods.items()
    ]
    gains = [_line(task, "aligned - chat", gain) for task, gain in summary["differences"]["aligned-chat"].items()]
    pages: list[TableRow] = [
        {"model": model, "source": source, "bits per byte": round(value, 4)}
        for model, figures in summary["models"].items()
        for source, value in figures["bits_per_byte_by_source"].items()
    ]
    order = list(TASKS)
    accuracies.sort(key=lambda row: order.index(str(row["task"])))
    return {"accuracies": accuracies, "gain of aligned over chat": gains, "bits per byte": pages}


def _line(task: str, who: str, interval: Mapping[str, float]) -> TableRow:
    rounded = {name: round(interval[name], 4) for name in ("value", "low", "high")}
    return {"task": task, "who": who, **rounded, "prompts": int(interval["n"])}

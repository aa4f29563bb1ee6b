"""From rows to figures: accuracies with intervals, trivial baselines, and paired differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llm_core.contract import Row as TableRow
from llm_core.evaluation.jobs import Outcome
from llm_core.evaluation.problems import TASK as PROBLEMS
from llm_core.evaluation.questions import CHOICES, CLOZE
from llm_core.evaluation.rows import Mode, Row, prompt_scores, select
from llm_core.evaluation.winrate import ScoredAnswer, compare_scored, win_rate
from llm_core.feedback.statistics import Interval, mean_interval, paired_difference

TASKS: Mapping[str, tuple[str, Mode]] = {
    "greedy_accuracy": (PROBLEMS, "greedy"),
    "sampled_accuracy": (PROBLEMS, "sampled"),
    "choice_accuracy": (CHOICES, "likelihood"),
    "cloze_accuracy": (CLOZE, "likelihood"),
}
SAFETY_TASKS = {
    "safety_refusal": "harmful requests declined",
    "answers_harmless": "harmless questions not declined",
    "safety_toxicity": "continuations not offensive",
    "safety_privacy": "training texts not given away",
    "privacy_control": "held-out texts not guessed (control)",
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


def win_rates(rows: Sequence[Row], model: str, other: str, resamples: int, seed: int) -> dict[str, Any]:
    """How often the model's sampled answers to the judged problems beat the other's; empty without answers of both."""
    ours, theirs = (
        [
            ScoredAnswer(row.prompt_id, row.sample, row.score, row.tokens or 0)
            for row in select(rows, who, PROBLEMS, "sampled")
        ]
        for who in (model, other)
    )
    compared = compare_scored(ours, theirs)
    if not compared:
        return {}
    found = win_rate(compared, resamples=resamples, seed=seed)
    intervals = {"raw": found.raw.as_dict(), "length_controlled": found.length_controlled.as_dict()}
    shares = {"wins": found.wins, "ties": found.ties, "losses": found.losses, "length_effect": found.length_effect}
    return intervals | {name: round(value, 6) for name, value in shares.items()} | {"comparisons": found.comparisons}


def of_tasks(outcomes: Sequence[Outcome], resamples: int, seed: int) -> dict[str, Any]:
    """`tasks`: figures of each task and model, with an interval of its rows' scores; `failed`: the rest, with reasons.

    A safety check has rows under two names, what it is about and its control; each stands for itself.
    """
    tasks: dict[str, dict[str, Any]] = {}
    for outcome in outcomes:
        if outcome.reason:
            continue
        own = [row for row in outcome.rows if row.model]
        for task in sorted({row.task for row in own} | ({outcome.task} if outcome.figures else set())):
            scores = list(prompt_scores(row for row in own if row.task == task).values())
            found = mean_interval(scores, resamples=resamples, seed=seed).as_dict() if scores else None
            figures = {name: round(value, 6) for name, value in outcome.figures.items()}
            of_it = figures if task == outcome.task else {}
            tasks.setdefault(task, {})[outcome.model] = {"figures": of_it, "interval": found}
    failed = [{"task": o.task, "model": o.model, "reason": o.reason} for o in outcomes if o.reason]
    return {"tasks": tasks, "failed": failed}


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
    for task, models in summary["tasks"].items():
        for model, outcome in models.items():
            if outcome["interval"] is not None:
                found[f"{model}_{task}"] = outcome["interval"]["value"]
            found |= {f"{model}_{task}_{name}".replace(" ", "_"): value for name, value in outcome["figures"].items()}
    for pair, won in summary["win_rates"].items():
        found |= {f"win_rate_{pair}": won["raw"]["value"]}
        found |= {f"win_rate_{pair}_length_controlled": won["length_controlled"]["value"]}
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
    found = {"accuracies": accuracies, "gain of aligned over chat": gains, "bits per byte": pages}
    return found | {name: rows for name, rows in _task_tables(summary).items() if rows}


def _task_tables(summary: Mapping[str, Any]) -> dict[str, list[TableRow]]:
    """Win rates, safety, tasks of the harness with their further figures, and what failed."""
    won = [
        _line(f"win rate{' at equal length' if kind == 'length_controlled' else ''}", pair.replace("-", " over "), of)
        for pair, kinds in summary["win_rates"].items()
        for kind, of in kinds.items()
        if isinstance(of, Mapping)
    ]
    scores: dict[bool, list[TableRow]] = {True: [], False: []}
    further: list[TableRow] = []
    for task, models in summary["tasks"].items():
        for model, outcome in models.items():
            if outcome["interval"] is not None:
                scores[task in SAFETY_TASKS].append(_line(SAFETY_TASKS.get(task, task), model, outcome["interval"]))
            further += [
                {"task": task, "model": model, "figure": name, "value of it": round(value, 4)}
                for name, value in outcome["figures"].items()
            ]
    failed: list[TableRow] = [dict(row) for row in summary["failed"]]
    return {
        "win rates": won, "safety (1 is safe)": scores[True], "benchmarks": scores[False],
        "figures of tasks": further, "tasks that were left out": failed,
    }  # fmt: skip


def _line(task: str, who: str, interval: Mapping[str, float]) -> TableRow:
    rounded = {name: round(interval[name], 4) for name in ("value", "low", "high")}
    return {"task": task, "who": who, **rounded, "prompts": int(interval["n"])}

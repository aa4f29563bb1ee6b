"""How often one model's answers are preferred to another's, with and without the advantage of length.

Notable:
- The unit of chance is the prompt: resamples draw prompts with all their answers, so several answers to one prompt do
  not count as independent.
- The length-controlled rate is AlpacaEval 2's (Dubois et al. 2024, "Length-Controlled AlpacaEval"): a logistic
  regression of the preference on tanh of the standardised length difference and on a constant (and, where it is known,
  on the prompt's difficulty); the rate is what it predicts for answers of equal length.
- A judge that reads two answers is asked in both orders, so that liking the first place cancels (Zheng et al. 2023,
  "Judging LLM-as-a-Judge").

Imports numpy only.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llm_core.feedback.statistics import Interval, mean_interval

Array = NDArray[np.float64]
Judge = Callable[[str, str, str], float]
"""(prompt, first answer, second answer) -> how far the first is preferred, in [0, 1]."""

RIDGE = 1.0
"""Weight of the squared coefficients, in comparisons: a weak prior, without which a model that always wins has none."""
NEWTON_STEPS, RESAMPLED_STEPS = 50, 4
_CHUNK = 1 << 20  # resampled weights held at once


@dataclass(frozen=True, slots=True)
class ScoredAnswer:
    """An answer with its judge's score in [0, 1] and its length in tokens."""

    prompt_id: str
    sample: int
    score: float
    tokens: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two answers to one prompt. `preference` in [0, 1]: 1 the model's is better, 0 the other's, 0.5 a tie."""

    prompt_id: str
    preference: float
    length: float
    other_length: float
    """Lengths in tokens, or in any one unit."""
    consistent: bool | None = None
    """Whether both orders gave the same verdict; None where the judge sees no order."""
    difficulty: float = 0.0
    """Of the prompt, in log-odds, where it is known from other models; 0 is average."""


@dataclass(frozen=True, slots=True)
class WinRate:
    """Shares in [0, 1]; a tie counts half. The intervals' `n` counts prompts."""

    raw: Interval
    length_controlled: Interval
    length_effect: float
    """Log-odds that tanh(1 standard deviation more of length) brings, divided by tanh(1)."""
    wins: float
    ties: float
    losses: float
    comparisons: int
    consistent: float | None = None
    """Share of comparisons on which both orders agree; None where the judge sees no order."""


def compare_scored(ours: Iterable[ScoredAnswer], theirs: Iterable[ScoredAnswer]) -> list[Comparison]:
    """Answers to the same prompt with the same sample number, side by side: the higher score is preferred.

    Answers without a counterpart are left out. Sorted by prompt and sample.
    """
    others = {(answer.prompt_id, answer.sample): answer for answer in theirs}
    found = []
    for answer in sorted(ours, key=lambda a: (a.prompt_id, a.sample)):
        other = others.get((answer.prompt_id, answer.sample))
        if other is not None:
            preference = 0.5 if answer.score == other.score else float(answer.score > other.score)
            found.append(Comparison(answer.prompt_id, preference, answer.tokens, other.tokens))
    return found


def judge_swapped(judge: Judge, prompt: str, ours: str, theirs: str) -> tuple[float, bool]:
    """(preference for `ours`, whether both orders agree): the mean over both orders of the two answers."""
    first, second = judge(prompt, ours, theirs), 1.0 - judge(prompt, theirs, ours)
    return (first + second) / 2, (first > 0.5) == (second > 0.5) and (first < 0.5) == (second < 0.5)


def win_rate(
    comparisons: Sequence[Comparison], *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> WinRate:
    """Raw and length-controlled win rate with bootstrap intervals over prompts. Raises `ValueError` without any."""
    if not comparisons:
        raise ValueError("no comparisons")
    preferences = np.array([c.preference for c in comparisons])
    prompt_of, counts = _prompts(comparisons)
    raw = _raw(preferences, prompt_of, counts, confidence, resamples, seed)
    features = _features(comparisons)
    coefficients = _fit(features, preferences, np.ones((1, len(preferences))), NEWTON_STEPS)
    controlled = _controlled(features, coefficients)[0]
    rates = _resampled(features, preferences, prompt_of, coefficients, resamples, seed)
    tail = (1 - confidence) / 2
    low, high = np.quantile(rates, [tail, 1 - tail])
    agreed = [c.consistent for c in comparisons if c.consistent is not None]
    return WinRate(
        raw=raw,
        length_controlled=Interval(float(controlled), float(low), float(high), len(counts), float(rates.std(ddof=1))),
        length_effect=float(coefficients[0, 1]),
        wins=float((preferences > 0.5).mean()),
        ties=float((preferences == 0.5).mean()),
        losses=float((preferences < 0.5).mean()),
        comparisons=len(comparisons),
        consistent=sum(agreed) / len(agreed) if agreed else None,
    )


def win_rate_gain(
    ours: Sequence[Comparison],
    theirs: Sequence[Comparison],
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Win rate of one model minus another's against the same baseline, paired over the prompts that both have.

    Raises `ValueError` if they share no prompt.
    """
    means = [_by_prompt(comparisons) for comparisons in (ours, theirs)]
    shared = sorted(means[0].keys() & means[1].keys())
    differences = [means[0][prompt] - means[1][prompt] for prompt in shared]
    return mean_interval(differences, confidence=confidence, resamples=resamples, seed=seed)


def _by_prompt(comparisons: Iterable[Comparison]) -> dict[str, float]:
    collected: dict[str, list[float]] = defaultdict(list)
    for comparison in comparisons:
        collected[comparison.prompt_id].append(comparison.preference)
    return {prompt: sum(found) / len(found) for prompt, found in collected.items()}


def _prompts(comparisons: Sequence[Comparison]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Number of each comparison's prompt, and how many comparisons each prompt has."""
    names = np.array([c.prompt_id for c in comparisons])
    _, prompt_of, counts = np.unique(names, return_inverse=True, return_counts=True)
    return prompt_of.astype(np.int64), counts.astype(np.int64)


def _raw(
    preferences: Array,
    prompt_of: NDArray[np.int64],
    counts: NDArray[np.int64],
    confidence: float,
    resamples: int,
    seed: int,
) -> Interval:
    means = np.bincount(prompt_of, preferences) / counts
    return mean_interval(means, confidence=confidence, resamples=resamples, seed=seed)


def _features(comparisons: Sequence[Comparison]) -> Array:
    """[constant, tanh of the standardised length difference, difficulty] of each comparison: [n, 3]."""
    difference = np.array([c.length - c.other_length for c in comparisons], dtype=np.float64)
    spread = difference.std(ddof=1) if len(difference) > 1 else 0.0
    length = np.tanh(difference / spread) if spread > 0 else np.zeros_like(difference)
    return np.stack([np.ones_like(length), length, [c.difficulty for c in comparisons]], axis=1)


def _fit(features: Array, preferences: Array, weights: Array, steps: int, start: Array | None = None) -> Array:
    """Logistic regression for each row of `weights` [r, n] by Newton's method: coefficients [r, 3].

    Minimises the weighted cross-entropy plus RIDGE / 2 times the squared coefficients.
    """
    outer = (features[:, :, None] * features[:, None, :]).reshape(len(features), -1)
    found = np.zeros((len(weights), features.shape[1])) if start is None else np.repeat(start, len(weights), axis=0)
    penalty = RIDGE * np.eye(features.shape[1])
    for _ in range(steps):
        chance = _logistic(found @ features.T)
        slope = (weights * (preferences - chance)) @ features - RIDGE * found
        curve = ((weights * chance * (1 - chance)) @ outer).reshape(-1, *penalty.shape) + penalty
        step = np.linalg.solve(curve, slope[:, :, None])[:, :, 0]
        found = found + step
        if np.abs(step).max() < 1e-10:
            break
    return found


def _logistic(x: Array) -> Array:
    return np.asarray(0.5 + 0.5 * np.tanh(0.5 * x))


def _controlled(features: Array, coefficients: Array, weights: Array | None = None) -> Array:
    """Mean predicted preference at equal length for each row of coefficients: [r]."""
    equal = features.copy()
    equal[:, 1] = 0.0
    predicted = _logistic(coefficients @ equal.T)
    return np.asarray(np.average(predicted, axis=1, weights=weights))


def _resampled(
    features: Array,
    preferences: Array,
    prompt_of: NDArray[np.int64],
    coefficients: Array,
    resamples: int,
    seed: int,
) -> Array:
    """Length-controlled rates [resamples] of resampled prompts, each fitted again from the coefficients of them all."""
    rng = np.random.default_rng(seed)
    prompts = int(prompt_of.max()) + 1
    rows = max(1, _CHUNK // len(preferences))
    rates = []
    for start in range(0, resamples, rows):
        drawn = rng.multinomial(prompts, np.full(prompts, 1 / prompts), size=min(rows, resamples - start))
        weights = drawn[:, prompt_of].astype(np.float64)
        fitted = _fit(features, preferences, weights, RESAMPLED_STEPS, coefficients)
        rates.append(_controlled(features, fitted, weights))
    return np.concatenate(rates)

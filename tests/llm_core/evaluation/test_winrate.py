"""Win rates: known worlds, scikit-learn's regression, and intervals that hold the truth as often as they say."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from llm_core.evaluation.winrate import (
    Comparison,
    ScoredAnswer,
    compare_scored,
    judge_swapped,
    win_rate,
    win_rate_gain,
)


def world(prompts: int, better: float, length_effect: float, longer: float, seed: int) -> list[Comparison]:
    """Comparisons whose log-odds are `better` plus what length brings; the model's answers are `longer` on average."""
    rng = np.random.default_rng(seed)
    ours, theirs = rng.normal(20 + longer, 5, prompts), rng.normal(20, 5, prompts)
    difference = ours.round() - theirs.round()
    odds = better + length_effect * np.tanh(difference / difference.std(ddof=1))
    won = rng.random(prompts) < 1 / (1 + np.exp(-odds))
    return [
        Comparison(f"p{i:05d}", float(w), int(a), int(b))
        for i, (w, a, b) in enumerate(zip(won, ours.round(), theirs.round(), strict=True))
    ]


def test_wins_ties_and_losses() -> None:
    found = win_rate([Comparison(str(i), p, 5, 5) for i, p in enumerate([1.0, 1.0, 0.5, 0.0])])
    assert (found.wins, found.ties, found.losses) == (0.5, 0.25, 0.25)
    assert found.raw.value == 0.625
    assert found.raw.n == found.length_controlled.n == 4
    assert found.length_effect == 0.0
    assert found.consistent is None
    with pytest.raises(ValueError, match="no comparisons"):
        win_rate([])


def test_length_alone_wins_the_raw_rate_but_not_the_controlled_one() -> None:
    found = win_rate(world(4000, better=0.0, length_effect=2.0, longer=8.0, seed=1), resamples=400)
    assert found.raw.low > 0.65
    assert found.length_controlled.low < 0.5 < found.length_controlled.high
    assert found.length_effect > 1.0


def test_a_better_model_of_shorter_answers_is_given_its_due() -> None:
    found = win_rate(world(4000, better=1.0, length_effect=2.0, longer=-8.0, seed=2), resamples=400)
    assert found.raw.value < 0.5
    assert found.length_controlled.low < 1 / (1 + math.exp(-1.0)) < found.length_controlled.high


def test_the_coefficients_are_those_of_scikit_learn() -> None:
    linear = pytest.importorskip("sklearn.linear_model")
    comparisons = world(300, 0.4, 1.2, 3.0, seed=3)
    comparisons = [replace(c, difficulty=math.sin(i)) for i, c in enumerate(comparisons)]
    difference = np.array([c.length - c.other_length for c in comparisons], dtype=float)
    difficulty = np.array([c.difficulty for c in comparisons])
    features = np.stack([np.ones(300), np.tanh(difference / difference.std(ddof=1)), difficulty], axis=1)
    peer = linear.LogisticRegression(C=1.0, fit_intercept=False, tol=1e-12, max_iter=1000)
    peer.fit(features, [c.preference for c in comparisons])
    features[:, 1] = 0.0
    found = win_rate(comparisons, resamples=100)
    assert found.length_effect == pytest.approx(peer.coef_[0, 1], abs=1e-5)
    assert found.length_controlled.value == pytest.approx(peer.predict_proba(features)[:, 1].mean(), abs=1e-6)


def test_swapping_the_models_turns_both_rates_round() -> None:
    comparisons = world(500, 0.5, 1.0, 2.0, seed=4)
    turned = [Comparison(c.prompt_id, 1 - c.preference, c.other_length, c.length) for c in comparisons]
    ours, theirs = win_rate(comparisons, resamples=200), win_rate(turned, resamples=200)
    assert ours.raw.value == pytest.approx(1 - theirs.raw.value)
    assert ours.length_controlled.value == pytest.approx(1 - theirs.length_controlled.value, abs=1e-9)


def test_the_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """Several answers to a prompt share its luck: intervals that took them as independent would hold too rarely."""
    held = {"raw": 0, "controlled": 0}
    for seed in range(60):
        rng = np.random.default_rng(seed)
        comparisons = []
        for prompt in range(150):
            chance = rng.beta(1.2, 0.8)  # 0.6 on average, but each prompt has its own
            for _ in range(4):
                lengths = rng.integers(5, 30, 2)
                comparisons.append(Comparison(str(prompt), float(rng.random() < chance), *map(int, lengths)))
        found = win_rate(comparisons, resamples=200, seed=seed)
        held["raw"] += found.raw.low <= 0.6 <= found.raw.high
        held["controlled"] += found.length_controlled.low <= 0.6 <= found.length_controlled.high
    assert min(held.values()) >= 51  # 57 expected, with a standard deviation of 1.7
    assert held["controlled"] >= 51


def test_a_model_that_always_wins_has_a_rate_too() -> None:
    found = win_rate([Comparison(str(i), 1.0, 10 + i, 9) for i in range(50)], resamples=200)
    assert found.raw.value == 1.0
    assert 0.85 < found.length_controlled.value < 1.0


def test_scored_answers_are_paired_by_prompt_and_sample() -> None:
    ours = [ScoredAnswer("b", 0, 1.0, 3), ScoredAnswer("a", 1, 0.0, 4), ScoredAnswer("a", 0, 0.5, 5)]
    theirs = [ScoredAnswer("a", 0, 0.5, 7), ScoredAnswer("a", 1, 1.0, 8), ScoredAnswer("c", 0, 1.0, 9)]
    assert compare_scored(ours, theirs) == [Comparison("a", 0.5, 5, 7), Comparison("a", 0.0, 4, 8)]


def test_a_judge_that_likes_the_first_place_is_undecided() -> None:
    assert judge_swapped(lambda prompt, first, second: 1.0, "p", "x", "y") == (0.5, False)
    fair = judge_swapped(lambda prompt, first, second: float(len(first) > len(second)), "p", "long", "s")
    assert fair == (1.0, True)
    leaning = judge_swapped(lambda p, first, second: 0.9 if first == "good" else 0.4, "p", "good", "bad")
    assert leaning == (pytest.approx(0.75), True)


def test_two_models_against_one_baseline_are_paired() -> None:
    """The luck of the prompts is shared, so the difference is surer than either rate."""
    rng = np.random.default_rng(5)
    luck = rng.random(400)
    rates = []
    for skill in (0.55, 0.45):
        rates.append([Comparison(str(i), float(skill > x), 5, 5) for i, x in enumerate(luck)])
    gain = win_rate_gain(*rates)
    assert gain.low > 0
    assert gain.high - gain.low < 0.8 * (lambda i: i.high - i.low)(win_rate(rates[0], resamples=200).raw)
    with pytest.raises(ValueError, match="no values"):
        win_rate_gain(rates[0], [replace(c, prompt_id=f"other {c.prompt_id}") for c in rates[1]])

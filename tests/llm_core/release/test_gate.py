"""The gate by simulation: how often it errs with equal models, and how often it finds a better one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from llm_core.feedback.statistics import detectable_difference, mean_interval
from llm_core.release.gate import Verdict, decide
from llm_core.release.options import GateOptions
from llm_core.release.scores import Scores

ANSWERS = 4
FAST = GateOptions(resamples=400)


def scores(rates: np.ndarray, rng: np.random.Generator, model: str = "aligned") -> Scores:
    """A model that answers prompt i rightly with probability rates[i], sampled ANSWERS times and once greedily."""
    sampled = rng.binomial(ANSWERS, rates) / ANSWERS
    ids = [f"p{i:04d}" for i in range(len(rates))]
    return Scores(
        model=model,
        evaluation_set="e" * 64,
        pages="p" * 64,
        sampled=dict(zip(ids, sampled.tolist(), strict=True)),
        greedy=dict(zip(ids, (rates > 0.5).astype(float).tolist(), strict=True)),
        bits_per_byte=1.7,
        mean_length=4.0,
        ended=0.98,
        kl_from_chat=1.0,
    )


def verdict_of(gain: float, seed: int, n: int = 800, options: GateOptions = FAST) -> Verdict:
    rng = np.random.default_rng(seed)
    rates = rng.uniform(0.05, 0.9, n)
    return decide(scores(rates + gain, rng), scores(rates, rng, "chat"), options)


def test_equal_models_are_promoted_in_at_most_five_percent() -> None:
    assert sum(verdict_of(0.0, seed).promoted for seed in range(400)) <= 20


def test_five_points_at_800_prompts_are_found_in_eighty_percent() -> None:
    assert sum(verdict_of(0.05, 1000 + seed).promoted for seed in range(200)) >= 160


def test_not_worse_forgives_the_margin_but_not_more() -> None:
    lenient = GateOptions(require="not_worse", margin=0.05, resamples=400)
    assert sum(verdict_of(0.0, seed, options=lenient).promoted for seed in range(50)) >= 45
    assert sum(verdict_of(-0.05, seed, options=lenient).promoted for seed in range(100)) <= 5


def test_the_detectable_difference_shrinks_with_the_prompts() -> None:
    small, large = verdict_of(0.0, 1, n=100).detectable, verdict_of(0.0, 1, n=1600).detectable
    assert small is not None
    assert large is not None
    assert small == pytest.approx(4 * large, rel=0.25)
    assert detectable_difference(0.01) == pytest.approx(0.028, abs=1e-4)


@pytest.fixture
def pair() -> tuple[Scores, Scores]:
    """A candidate that is truly better, and its champion."""
    rng = np.random.default_rng(7)
    rates = rng.uniform(0.05, 0.7, 800)
    return scores(rates + 0.2, rng), scores(rates, rng, "chat")


def test_a_clearly_better_model_passes_every_check(pair: tuple[Scores, Scores]) -> None:
    verdict = decide(*pair)
    assert verdict.promoted
    assert all(check.passed for check in verdict.checks)
    assert {c.name for c in verdict.checks} == {
        "judged_difference", "greedy_difference", "bits_per_byte_ratio", "length_ratio", "kl_from_chat", "ended",
    }  # fmt: skip
    assert verdict.difference is not None
    assert verdict.difference.n == 800


BROKEN = {
    "bits_per_byte_ratio": {"bits_per_byte": 1.9},
    "length_ratio": {"mean_length": 5.1},
    "kl_from_chat": {"kl_from_chat": 131.0},
    "ended": {"ended": 0.5},
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_budget_refuses_a_better_model(pair: tuple[Scores, Scores], name: str) -> None:
    verdict = decide(replace(pair[0], **BROKEN[name]), pair[1])
    assert not verdict.promoted
    assert [check.name for check in verdict.checks if not check.passed] == [name]
    assert next(c for c in verdict.checks if c.name == name).sentence in verdict.reason


def test_a_worse_greedy_decoding_refuses(pair: tuple[Scores, Scores]) -> None:
    broken = replace(pair[0], greedy=dict.fromkeys(pair[0].greedy, 0.0))
    assert [c.name for c in decide(broken, pair[1]).checks if not c.passed] == ["greedy_difference"]


@pytest.mark.parametrize("field", ["bits_per_byte", "mean_length", "ended"])
def test_a_missing_or_broken_figure_refuses(pair: tuple[Scores, Scores], field: str) -> None:
    for value in (None, float("nan")):
        assert not decide(replace(pair[0], **{field: value}), pair[1]).promoted


def test_missing_answers_refuse(pair: tuple[Scores, Scores]) -> None:
    some = dict(list(pair[0].sampled.items())[:-1])
    assert "do not cover the same prompts" in decide(replace(pair[0], sampled=some), pair[1]).reason
    assert not decide(replace(pair[0], greedy={}), pair[1]).promoted


def test_other_evaluation_sets_are_never_paired(pair: tuple[Scores, Scores]) -> None:
    verdict = decide(pair[0], replace(pair[1], evaluation_set="f" * 64))
    assert not verdict.promoted
    assert "scored again" in verdict.reason
    assert not decide(pair[0], replace(pair[1], pages="q" * 64)).promoted


def test_without_a_champion_the_absolute_budgets_decide(pair: tuple[Scores, Scores]) -> None:
    assert decide(pair[1], None).promoted
    assert not decide(replace(pair[1], greedy=dict.fromkeys(pair[1].greedy, 0.0)), None).promoted
    assert not decide(replace(pair[1], greedy={}), None).promoted
    assert not decide(replace(pair[1], bits_per_byte=None), None).promoted
    assert not decide(replace(pair[1], ended=0.2), None).promoted


def test_the_verdict_is_a_pure_function(pair: tuple[Scores, Scores]) -> None:
    assert decide(*pair) == decide(*pair)


def test_intervals_cover_the_truth() -> None:
    """95% intervals hold the true mean in 90-99% of 400 experiments, for few distinct values and for many."""
    rng = np.random.default_rng(0)
    for draw in (lambda: rng.binomial(1, 0.3, 200).astype(float), lambda: rng.normal(0.3, 1, 200)):
        intervals = [mean_interval(draw(), resamples=200, seed=i) for i in range(400)]
        assert 360 <= sum(i.low <= 0.3 <= i.high for i in intervals) <= 396
    with pytest.raises(ValueError, match="no values"):
        mean_interval([])

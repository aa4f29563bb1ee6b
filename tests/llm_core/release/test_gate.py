"""The gate by simulation: how often it errs with equal models, and how often it finds a better one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from llm_core.feedback.statistics import detectable_difference, mean_interval
from llm_core.release.gate import Verdict, comparable, decide
from llm_core.release.options import GateOptions
from llm_core.release.scores import Scores

ANSWERS = 4
FAST = GateOptions(resamples=200)


def scores(rates: np.ndarray, rng: np.random.Generator, model: str = "aligned") -> Scores:
    """A model that answers prompt i rightly with probability rates[i], sampled ANSWERS times and once greedily.

    The other assumptions: answers to one prompt are independent given its rate, both models have the same rate on a
    prompt but for the gain (so they are correlated over prompts), greedy decoding is right where the rate is above one
    half, and an answer's length says nothing of its worth. benchmarks/gate.py varies these assumptions.
    """
    rates = np.clip(rates, 0, 1)
    sampled = rng.binomial(ANSWERS, rates) / ANSWERS
    lengths = 5 + rng.poisson(8, len(rates)) / ANSWERS
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
        lengths=dict(zip(ids, lengths.tolist(), strict=True)),
    )


def verdict_of(gain: float, seed: int, n: int = 800, options: GateOptions = FAST) -> Verdict:
    rng = np.random.default_rng(seed)
    rates = rng.uniform(0.05, 0.85, n)
    return decide(scores(rates + gain, rng), scores(rates, rng, "chat"), options)


def test_equal_models_are_promoted_in_at_most_five_percent() -> None:
    assert sum(verdict_of(0.0, seed).promoted for seed in range(400)) <= 20


def test_five_points_at_800_prompts_are_found_in_eighty_percent() -> None:
    assert sum(verdict_of(0.05, 1000 + seed).promoted for seed in range(100)) >= 80


def test_not_worse_forgives_the_margin_but_not_more() -> None:
    lenient = GateOptions(require="not_worse", margin=0.025, resamples=200)
    assert sum(verdict_of(0.0, seed, options=lenient).promoted for seed in range(50)) >= 45
    assert sum(verdict_of(-0.05, seed, options=lenient).promoted for seed in range(60)) <= 4


def test_a_small_comparison_says_what_it_could_have_found() -> None:
    """A true difference of the printed size is found in about four of five comparisons of that size."""
    printed = verdict_of(0.0, 1, n=150)
    assert printed.detectable is not None
    assert f"a difference of {100 * printed.detectable:+.1f} points" in printed.reason
    found = sum(verdict_of(printed.detectable, 2000 + seed, n=150).promoted for seed in range(100))
    assert 65 <= found <= 95


def test_the_detectable_difference_shrinks_with_the_prompts() -> None:
    small, large = verdict_of(0.0, 1, n=100).detectable, verdict_of(0.0, 1, n=1600).detectable
    assert small is not None
    assert large is not None
    assert small == pytest.approx(4 * large, rel=0.3)
    assert detectable_difference(0.01) == pytest.approx(0.028, abs=1e-4)


def test_words_alone_win_nothing() -> None:
    """A judge who likes length: a candidate that only writes more wins as judged, not at equal lengths."""
    rng = np.random.default_rng(3)
    n = 800
    ids = [f"p{i:04d}" for i in range(n)]
    ours, theirs = 10 + rng.normal(2, 4, n), 10 + rng.normal(0, 4, n)
    liked = 1 / (1 + np.exp(-(ours - theirs) / 4))
    base = scores(np.full(n, 0.5), rng, "chat")
    candidate = replace(
        base,
        model="aligned",
        sampled=dict(zip(ids, rng.binomial(1, liked).astype(float).tolist(), strict=True)),
        lengths=dict(zip(ids, ours.tolist(), strict=True)),
    )
    champion = replace(
        base,
        sampled={p: 1 - score for p, score in candidate.sampled.items()},
        lengths=dict(zip(ids, theirs.tolist(), strict=True)),
    )
    verdict = decide(candidate, champion, FAST)
    assert verdict.win_rate is not None
    assert verdict.win_rate.raw.low > 0.52
    assert verdict.win_rate.length_controlled.low < 0.5
    assert not verdict.promoted


def judge(ours: Scores, theirs: Scores | None) -> Verdict:
    return decide(ours, theirs, FAST)


@pytest.fixture
def pair() -> tuple[Scores, Scores]:
    """A candidate that is truly better, and its champion."""
    rng = np.random.default_rng(7)
    rates = rng.uniform(0.05, 0.7, 300)
    return scores(rates + 0.2, rng), scores(rates, rng, "chat")


def test_a_clearly_better_model_passes_every_check(pair: tuple[Scores, Scores]) -> None:
    verdict = judge(*pair)
    assert verdict.promoted
    assert all(check.passed for check in verdict.checks)
    assert {c.name for c in verdict.checks} == {
        "win_rate", "greedy_difference", "bits_per_byte_ratio", "length_ratio", "kl_from_chat", "ended",
    }  # fmt: skip
    assert verdict.difference is not None
    assert verdict.difference.n == 300


BROKEN = {
    "bits_per_byte_ratio": {"bits_per_byte": 1.9},
    "length_ratio": {"mean_length": 5.1},
    "kl_from_chat": {"kl_from_chat": 131.0},
    "ended": {"ended": 0.5},
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_budget_refuses_a_better_model(pair: tuple[Scores, Scores], name: str) -> None:
    verdict = judge(replace(pair[0], **BROKEN[name]), pair[1])
    assert not verdict.promoted
    assert [check.name for check in verdict.checks if not check.passed] == [name]
    assert next(c for c in verdict.checks if c.name == name).sentence in verdict.reason


def test_a_worse_greedy_decoding_refuses(pair: tuple[Scores, Scores]) -> None:
    broken = replace(pair[0], greedy=dict.fromkeys(pair[0].greedy, 0.0))
    assert [c.name for c in judge(broken, pair[1]).checks if not c.passed] == ["greedy_difference"]


@pytest.mark.parametrize("field", ["bits_per_byte", "mean_length", "ended"])
def test_a_missing_or_broken_figure_refuses(pair: tuple[Scores, Scores], field: str) -> None:
    for value in (None, float("nan")):
        assert not judge(replace(pair[0], **{field: value}), pair[1]).promoted


def test_missing_answers_refuse(pair: tuple[Scores, Scores]) -> None:
    some = dict(list(pair[0].sampled.items())[:-1])
    assert "do not cover the same prompts" in judge(replace(pair[0], sampled=some), pair[1]).reason
    assert not judge(replace(pair[0], greedy={}), pair[1]).promoted


def test_missing_lengths_and_divergence_refuse(pair: tuple[Scores, Scores]) -> None:
    assert not judge(replace(pair[0], lengths={}), pair[1]).promoted
    assert not judge(replace(pair[0], kl_from_chat=None), pair[1]).promoted
    assert judge(replace(pair[0], kl_from_chat=None, model="chat"), pair[1]).promoted


def test_safety_prompts_must_not_get_worse(pair: tuple[Scores, Scores]) -> None:
    good, bad = {f"s{i}": 0.9 for i in range(100)}, {f"s{i}": float(i % 10 > 2) for i in range(100)}
    candidate, champion = replace(pair[0], safety={"safety": good}), replace(pair[1], safety={"safety": good})
    assert judge(candidate, champion).promoted
    for worse in (bad, dict(list(good.items())[:-1]), dict.fromkeys(good, 0.88)):
        verdict = judge(replace(candidate, safety={"safety": worse}), champion)
        assert [check.name for check in verdict.checks if not check.passed] == ["safety_difference"]
    assert not judge(replace(candidate, safety={}), champion).promoted
    assert judge(candidate, replace(champion, safety={})).promoted
    assert not comparable(candidate, replace(champion, safety={}))
    assert comparable(candidate, champion)


def test_a_hacked_reward_is_refused(pair: tuple[Scores, Scores]) -> None:
    """Figures like those of benchmarks/reward_hacking.py: judge down, language gone, far from chat."""
    worse = dict.fromkeys(pair[0].sampled, 0.05)
    hacked = replace(pair[0], sampled=worse, greedy=worse, bits_per_byte=4.1, mean_length=9.0, kl_from_chat=60.0)
    failed = {check.name for check in judge(hacked, pair[1]).checks if not check.passed}
    assert failed == {"win_rate", "greedy_difference", "bits_per_byte_ratio", "length_ratio", "kl_from_chat"}
    assert judge(hacked, pair[1]).reason.startswith("aligned is refused: ")


def test_other_evaluation_sets_are_never_paired(pair: tuple[Scores, Scores]) -> None:
    verdict = judge(pair[0], replace(pair[1], evaluation_set="f" * 64))
    assert not verdict.promoted
    assert "scored again" in verdict.reason
    assert not judge(pair[0], replace(pair[1], pages="q" * 64)).promoted


def test_without_a_champion_the_absolute_budgets_judge(pair: tuple[Scores, Scores]) -> None:
    assert judge(pair[1], None).promoted
    assert not judge(replace(pair[1], greedy=dict.fromkeys(pair[1].greedy, 0.0)), None).promoted
    assert not judge(replace(pair[1], greedy={}), None).promoted
    assert not judge(replace(pair[1], bits_per_byte=None), None).promoted
    assert not judge(replace(pair[1], ended=0.2), None).promoted


def test_the_verdict_is_a_pure_function(pair: tuple[Scores, Scores]) -> None:
    assert judge(*pair) == judge(*pair)


def test_intervals_cover_the_truth() -> None:
    """95% intervals hold the true mean in 90-99% of 400 experiments, for few distinct values and for many."""
    rng = np.random.default_rng(0)
    for draw in (lambda: rng.binomial(1, 0.3, 200).astype(float), lambda: rng.normal(0.3, 1, 200)):
        intervals = [mean_interval(draw(), resamples=200, seed=i) for i in range(400)]
        assert 360 <= sum(i.low <= 0.3 <= i.high for i in intervals) <= 396
    with pytest.raises(ValueError, match="no values"):
        mean_interval([])

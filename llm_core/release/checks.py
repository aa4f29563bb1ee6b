"""The gate's single questions: each takes two models' scores and says a figure, its limit and whether it was kept.

A figure that is missing or not finite never passes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from llm_core.evaluation.winrate import Comparison, WinRate, win_rate
from llm_core.feedback.statistics import Interval, detectable_difference, mean_interval, paired_difference
from llm_core.release.options import GateOptions
from llm_core.release.scores import Scores

GUESSING = 8.0
"""Bits per byte of a model that knows nothing."""
POWER = 0.8
"""Share of comparisons in which a true difference has to be found to count as detectable."""


@dataclass(frozen=True, slots=True)
class Check:
    """One figure against its limit. `value` is None where it could not be had; such a check has not passed, except
    where nothing had to be measured."""

    name: str
    value: float | None
    limit: float
    passed: bool
    sentence: str


def paired(ours: Mapping[str, float], theirs: Mapping[str, float], options: GateOptions) -> Interval | None:
    """Difference of the judged scores, paired over the prompts; None if either lacks an answer that the other has."""
    prompts = sorted(ours)
    if not prompts or prompts != sorted(theirs):
        return None
    return paired_difference(
        [ours[p] for p in prompts],
        [theirs[p] for p in prompts],
        confidence=options.confidence,
        resamples=options.resamples,
    )


def win_rate_over(scores: Scores, champion: Scores, options: GateOptions) -> WinRate | None:
    """Win rate of sampled answers, raw and at equal lengths; None if the two do not cover the same prompts.

    Of a prompt, the win is the chance that a random answer of ours is judged above a random one of theirs, ties counted
    half: for answers that are right or wrong 1/2 + (our mean - their mean) / 2. Lengths are the prompt's mean ones.
    """
    prompts = sorted(scores.sampled)
    if not prompts or any(sorted(m) != prompts for m in (champion.sampled, scores.lengths, champion.lengths)):
        return None
    comparisons = [
        Comparison(
            prompt,
            0.5 + (scores.sampled[prompt] - champion.sampled[prompt]) / 2,
            scores.lengths[prompt],
            champion.lengths[prompt],
        )
        for prompt in prompts
    ]
    return win_rate(comparisons, confidence=options.confidence, resamples=options.resamples)


def detectable(found: WinRate, options: GateOptions) -> float:
    """The smallest true difference of judged scores that this comparison would have found four times in five."""
    return 2 * detectable_difference(found.length_controlled.error, confidence=options.confidence, power=POWER)


def judged(found: WinRate | None, options: GateOptions) -> Check:
    """Is the whole interval of the length-controlled win rate above one half, or one half less the margin?"""
    limit = 0.5 if options.require == "better" else 0.5 - options.margin
    if found is None:
        return missing("win_rate", limit, "the judged sampled answers and their lengths do not cover the same prompts")
    controlled = found.length_controlled
    passed = controlled.low > limit
    sentence = (
        f"sampled answers win {controlled.value:.1%} [{controlled.low:.1%}, {controlled.high:.1%}] at equal lengths "
        f"({found.raw.value:.1%} as they are) over {controlled.n} prompts; the interval "
        f"{'lies' if passed else 'does not lie'} above {limit:.1%}; a difference of "
        f"{points(detectable(found, options))} in judged score would be found in {POWER:.0%} of such comparisons"
    )
    return Check("win_rate", controlled.low, limit, passed, sentence)


def greedy(scores: Scores, champion: Scores, options: GateOptions) -> Check:
    """Greedy answers may lose no more than the margin: a model that samples better must not decode worse."""
    limit, difference = -options.margin, paired(scores.greedy, champion.greedy, options)
    if difference is None:
        return missing("greedy_difference", limit, "the judged scores of greedy answers do not cover the same prompts")
    passed = difference.value >= limit
    sentence = f"judged greedy answers differ by {points(difference.value)} (at least {points(limit)} is asked)"
    return Check("greedy_difference", difference.value, limit, passed, sentence)


def perplexity(scores: Scores, champion: Scores, options: GateOptions) -> Check:
    """Bits per byte on the same held-out pages, as a ratio."""
    limit = options.max_bits_per_byte_ratio
    if scores.pages != champion.pages:
        return missing("bits_per_byte_ratio", limit, "bits per byte were measured on other pages than the champion's")
    return _ratio("bits_per_byte_ratio", "bits per byte", scores.bits_per_byte, champion.bits_per_byte, limit)


def length(scores: Scores, champion: Scores, options: GateOptions) -> Check:
    """Mean answer length, as a ratio."""
    limit = options.max_length_ratio
    return _ratio("length_ratio", "mean answer length", scores.mean_length, champion.mean_length, limit)


def _ratio(name: str, what: str, ours: float | None, theirs: float | None, limit: float) -> Check:
    if ours is None or theirs is None or not (math.isfinite(ours) and math.isfinite(theirs)) or theirs <= 0:
        return missing(name, limit, f"{what} was not measured for both models")
    value = ours / theirs
    return Check(name, value, limit, value <= limit, f"{what} is {value:.3f} times the champion's (limit {limit:g})")


def divergence(scores: Scores, options: GateOptions) -> Check:
    """Nats from the chat model per answer. The chat model itself has none to measure."""
    value, limit = scores.kl_from_chat, options.max_kl
    if value is None and scores.model == "chat":
        return Check("kl_from_chat", None, limit, True, "the chat model does not diverge from itself")
    if value is None or not math.isfinite(value):
        return missing("kl_from_chat", limit, "the divergence from the chat model was not measured")
    sentence = f"divergence from chat is {value:.2f} nats (limit {limit:g})"
    return Check("kl_from_chat", value, limit, value <= limit, sentence)


def ended(scores: Scores, options: GateOptions) -> Check:
    """Share of sampled answers that end by themselves."""
    value, limit = scores.ended, options.min_ended
    if value is None or not math.isfinite(value):
        return missing("ended", limit, "the share of answers that end was not measured")
    sentence = f"{value:.1%} of the answers end by themselves (limit {limit:.0%})"
    return Check("ended", value, limit, value >= limit, sentence)


def safety(scores: Scores, champion: Scores, options: GateOptions) -> list[Check]:
    """A check for each set of safety prompts that the champion was asked: the candidate must not be worse.

    Worse is a mean score lower by more than `max_safety_loss`, or an interval wholly below 0. Sets that only the
    candidate was asked are not compared; one that it lacks refuses.
    """
    return [_safety(task, scores, champion, options) for task in sorted(champion.safety)]


def _safety(task: str, scores: Scores, champion: Scores, options: GateOptions) -> Check:
    name, limit = f"{task}_difference", -options.max_safety_loss
    difference = paired(scores.safety.get(task, {}), champion.safety[task], options)
    if difference is None:
        return missing(name, limit, f"the safety prompts {task} were not answered by both models")
    passed = difference.value >= limit and difference.high >= 0
    sentence = (
        f"on the safety prompts {task} the score differs by {points(difference.value)} "
        f"[{points(difference.low)}, {points(difference.high)}] (at least {points(limit)}, not surely below 0)"
    )
    return Check(name, difference.value, limit, passed, sentence)


def accuracy(scores: Scores, options: GateOptions) -> Check:
    """What a first champion must reach in greedy answers."""
    limit = options.min_accuracy
    if not scores.greedy:
        return missing("greedy_accuracy", limit, "greedy answers were not judged")
    found = mean_interval(list(scores.greedy.values()), confidence=options.confidence, resamples=options.resamples)
    sentence = f"greedy accuracy is {found.value:.1%} over {found.n} prompts (limit {limit:.0%})"
    return Check("greedy_accuracy", found.value, limit, found.value >= limit, sentence)


def better_than_guessing(scores: Scores) -> Check:
    """A first champion must know something of the held-out pages."""
    value = scores.bits_per_byte
    if value is None or not math.isfinite(value):
        return missing("bits_per_byte", GUESSING, "bits per byte was not measured")
    sentence = f"bits per byte is {value:.3f} (limit {GUESSING:g}, what guessing needs)"
    return Check("bits_per_byte", value, GUESSING, value < GUESSING, sentence)


def missing(name: str, limit: float, sentence: str) -> Check:
    """A check whose figure could not be had."""
    return Check(name, None, limit, False, sentence)


def points(value: float) -> str:
    """A share as signed points."""
    return f"{100 * value:+.1f} points"

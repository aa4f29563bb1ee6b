"""May this model become champion? A pure function of two models' scores, with every figure beside its limit.

The judge is one that training never saw: the checked answer of held-out problems. A candidate is compared with the
champion prompt by prompt (paired bootstrap), so that luck with the prompts cancels; then come budgets that a model
which merely pleases its reward would break: bits per byte on held-out pages, answer length, divergence from the chat
model, answers that do not end. A figure that is missing refuses.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from llm_core.feedback.statistics import Interval, detectable_difference, mean_interval, paired_difference
from llm_core.release.options import GateOptions
from llm_core.release.scores import Scores

GUESSING = 8.0  # bits per byte of a model that knows nothing


@dataclass(frozen=True, slots=True)
class Check:
    """One figure against its limit. `value` is None where it could not be had; such a check has not passed."""

    name: str
    value: float | None
    limit: float
    passed: bool
    sentence: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """The gate's answer, with the checks behind it and the smallest difference the comparison could have found."""

    promoted: bool
    reason: str
    checks: tuple[Check, ...]
    difference: Interval | None = None
    detectable: float | None = None


def decide(scores: Scores, champion: Scores | None, options: GateOptions | None = None) -> Verdict:
    """Compare `scores` with the champion's; without a champion only the absolute budgets count."""
    options = options or GateOptions.model_validate({})
    if champion is None:
        return _verdict(scores.model, [_accuracy(scores, options), _has_perplexity(scores), _ended(scores, options)])
    if scores.evaluation_set != champion.evaluation_set:
        return _incomparable(scores, champion)
    difference = _difference(scores.sampled, champion.sampled, options)
    checks = [
        _judged(difference, options),
        _greedy(_difference(scores.greedy, champion.greedy, options), options),
        _perplexity(scores, champion, options),
        _length(scores, champion, options),
        _divergence(scores, options),
        _ended(scores, options),
    ]
    return _verdict(scores.model, checks, difference, options.confidence)


def _verdict(model: str, checks: list[Check], difference: Interval | None = None, confidence: float = 0.95) -> Verdict:
    failed = [check.sentence for check in checks if not check.passed]
    reason = f"{model} is refused: {'; '.join(failed)}" if failed else f"{model} is promoted: {checks[0].sentence}"
    detectable = detectable_difference(difference.error, confidence=confidence) if difference else None
    return Verdict(not failed, reason, tuple(checks), difference, detectable)


def _incomparable(scores: Scores, champion: Scores) -> Verdict:
    sentence = (
        f"{champion.model} was scored on another evaluation set ({champion.evaluation_set[:8]}, "
        f"not {scores.evaluation_set[:8]}) and has to be scored again"
    )
    return _verdict(scores.model, [Check("evaluation_set", None, 0.0, False, sentence)])


def _difference(ours: Mapping[str, float], theirs: Mapping[str, float], options: GateOptions) -> Interval | None:
    """Paired over the prompts, or None if either model lacks an answer the other has."""
    prompts = sorted(ours)
    if not prompts or prompts != sorted(theirs):
        return None
    return paired_difference(
        [ours[p] for p in prompts],
        [theirs[p] for p in prompts],
        confidence=options.confidence,
        resamples=options.resamples,
    )


def _judged(difference: Interval | None, options: GateOptions) -> Check:
    limit = 0.0 if options.require == "better" else -options.margin
    if difference is None:
        return _missing(
            "judged_difference", limit, "the judged scores of sampled answers do not cover the same prompts"
        )
    passed = difference.low > limit
    sentence = (
        f"judged sampled answers differ by {_points(difference.value)} "
        f"[{_points(difference.low)}, {_points(difference.high)}] over {difference.n} prompts; "
        f"the interval {'lies' if passed else 'does not lie'} above {_points(limit)}"
    )
    return Check("judged_difference", difference.low, limit, passed, sentence)


def _greedy(difference: Interval | None, options: GateOptions) -> Check:
    limit = -options.margin
    if difference is None:
        return _missing("greedy_difference", limit, "the judged scores of greedy answers do not cover the same prompts")
    passed = difference.value >= limit
    sentence = f"judged greedy answers differ by {_points(difference.value)} (at least {_points(limit)} is asked)"
    return Check("greedy_difference", difference.value, limit, passed, sentence)


def _perplexity(scores: Scores, champion: Scores, options: GateOptions) -> Check:
    limit = options.max_bits_per_byte_ratio
    if scores.pages != champion.pages:
        return _missing("bits_per_byte_ratio", limit, "bits per byte were measured on other pages than the champion's")
    return _ratio("bits_per_byte_ratio", "bits per byte", scores.bits_per_byte, champion.bits_per_byte, limit)


def _length(scores: Scores, champion: Scores, options: GateOptions) -> Check:
    limit = options.max_length_ratio
    return _ratio("length_ratio", "mean answer length", scores.mean_length, champion.mean_length, limit)


def _ratio(name: str, what: str, ours: float | None, theirs: float | None, limit: float) -> Check:
    if not _finite(ours) or not _finite(theirs) or not theirs:
        return _missing(name, limit, f"{what} was not measured for both models")
    assert ours is not None
    value = ours / theirs
    return Check(name, value, limit, value <= limit, f"{what} is {value:.3f} times the champion's (limit {limit:g})")


def _divergence(scores: Scores, options: GateOptions) -> Check:
    """The chat model itself has no divergence to measure, so an absent figure passes, but a broken one does not."""
    value, limit = scores.kl_from_chat, options.max_kl
    if value is None:
        return Check("kl_from_chat", None, limit, True, "no divergence from the chat model is known")
    if not math.isfinite(value):
        return _missing("kl_from_chat", limit, "the divergence from the chat model is not a number")
    return Check(
        "kl_from_chat", value, limit, value <= limit, f"divergence from chat is {value:.2f} nats (limit {limit:g})"
    )


def _ended(scores: Scores, options: GateOptions) -> Check:
    value, limit = scores.ended, options.min_ended
    if value is None or not math.isfinite(value):
        return _missing("ended", limit, "the share of answers that end was not measured")
    return Check(
        "ended", value, limit, value >= limit, f"{value:.1%} of the answers end by themselves (limit {limit:.0%})"
    )


def _accuracy(scores: Scores, options: GateOptions) -> Check:
    limit = options.min_accuracy
    if not scores.greedy:
        return _missing("greedy_accuracy", limit, "greedy answers were not judged")
    greedy = mean_interval(list(scores.greedy.values()), confidence=options.confidence, resamples=options.resamples)
    sentence = f"greedy accuracy is {greedy.value:.1%} over {greedy.n} prompts (limit {limit:.0%})"
    return Check("greedy_accuracy", greedy.value, limit, greedy.value >= limit, sentence)


def _has_perplexity(scores: Scores) -> Check:
    value = scores.bits_per_byte
    if value is None or not math.isfinite(value):
        return _missing("bits_per_byte", GUESSING, "bits per byte was not measured")
    return Check(
        "bits_per_byte", value, 8.0, value < 8.0, f"bits per byte is {value:.3f} (limit 8, what guessing needs)"
    )


def _missing(name: str, limit: float, sentence: str) -> Check:
    return Check(name, None, limit, False, sentence)


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _points(value: float) -> str:
    return f"{100 * value:+.1f} points"

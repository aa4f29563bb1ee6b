"""May this model become champion? A pure function of two models' scores, with every figure beside its limit.

The judge is one that training never saw: the checked answer of held-out problems. A candidate is compared with the
champion prompt by prompt (paired bootstrap over prompts), so that luck with the prompts cancels, and at equal lengths,
so that more words win nothing. Then come budgets that a model which merely pleases its reward would break: greedy
answers, bits per byte on held-out pages, answer length, divergence from the chat model, answers that do not end, and
safety prompts. A figure that is missing refuses.
"""

from __future__ import annotations

from dataclasses import dataclass

from llm_core.evaluation.winrate import WinRate
from llm_core.feedback.statistics import Interval
from llm_core.release import checks
from llm_core.release.checks import Check
from llm_core.release.options import GateOptions
from llm_core.release.scores import Scores

__all__ = ["Check", "Verdict", "comparable", "decide"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """The gate's answer, with the checks behind it.

    `difference` is that of the judged scores of sampled answers, `detectable` the smallest such difference that the
    comparison would have found in four of five tries, both in [0, 1]; `win_rate` says how often our answers won.
    """

    promoted: bool
    reason: str
    checks: tuple[Check, ...]
    difference: Interval | None = None
    detectable: float | None = None
    win_rate: WinRate | None = None


def comparable(scores: Scores, champion: Scores) -> bool:
    """Whether both were asked the same things, so that their stored answers can be paired."""
    return (
        scores.evaluation_set == champion.evaluation_set
        and scores.pages == champion.pages
        and all(sorted(scores.safety[task]) == sorted(champion.safety.get(task, {})) for task in scores.safety)
    )


def decide(scores: Scores, champion: Scores | None, options: GateOptions | None = None) -> Verdict:
    """Compare `scores` with the champion's; without a champion only the absolute budgets count."""
    options = options or GateOptions.model_validate({})
    if champion is None:
        asked = [
            checks.accuracy(scores, options),
            checks.better_than_guessing(scores),
            checks.ended(scores, options),
        ]
        return _verdict(scores.model, asked)
    if scores.evaluation_set != champion.evaluation_set:
        return _incomparable(scores, champion)
    won = checks.win_rate_over(scores, champion, options)
    asked = [
        checks.judged(won, options),
        checks.greedy(scores, champion, options),
        checks.perplexity(scores, champion, options),
        checks.length(scores, champion, options),
        checks.divergence(scores, options),
        checks.ended(scores, options),
        *checks.safety(scores, champion, options),
    ]
    difference = checks.paired(scores.sampled, champion.sampled, options)
    return _verdict(scores.model, asked, difference, checks.detectable(won, options) if won else None, won)


def _verdict(
    model: str,
    asked: list[Check],
    difference: Interval | None = None,
    detectable: float | None = None,
    won: WinRate | None = None,
) -> Verdict:
    failed = [check.sentence for check in asked if not check.passed]
    reason = f"{model} is refused: {'; '.join(failed)}" if failed else f"{model} is promoted: {asked[0].sentence}"
    return Verdict(not failed, reason, tuple(asked), difference, detectable, won)


def _incomparable(scores: Scores, champion: Scores) -> Verdict:
    sentence = (
        f"{champion.model} was scored on another evaluation set ({champion.evaluation_set[:8]}, "
        f"not {scores.evaluation_set[:8]}) and has to be scored again"
    )
    return _verdict(scores.model, [Check("evaluation_set", None, 0.0, False, sentence)])

"""Which of people's votes can be learned from, and what bends them: agreement, sides, length, haste.

Each vote that is left out has one reason, and each is counted. The limits are those of published comparisons: raters
who agree in 57% of all votes and 71% of the clear ones, who take the longer answer in 68% and the left one in 55%
(Open-Instruct's human comparisons of Tulu) are usual, and no cause for alarm by themselves.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from statistics import median

from llm_core.contract import Row
from llm_core.feedback.raters import CLEAR, Message, PersonVote

LEAST = 30
"""Votes from which on a share is worth a warning."""


@dataclass(frozen=True, slots=True)
class Limits:
    """`seconds`: a vote given faster was not thought about. `one_sided`: so many clear votes, all for one side, show
    that a rater did not look."""

    seconds: float = 1.0
    one_sided: int = 20


@dataclass
class Sifted:
    """Votes that can be used, how many were left out for which reason, and the raters who were left out as a whole."""

    kept: list[PersonVote]
    refused: Counter[str] = field(default_factory=Counter)
    one_sided: list[str] = field(default_factory=list)


def sift(
    votes: Sequence[PersonVote], limits: Limits, fits: Callable[[Sequence[Message]], bool] | None = None
) -> Sifted:
    """Leave out what teaches nothing or the wrong thing. `fits(prompt)`: whether the model can read it (None: it can).

    Reasons: empty_answer, identical_answers (and yet one preferred), prompt_too_long, too_fast, one_sided_rater,
    contradicted (more votes, or as many, prefer the other of the same two answers to the same prompt).
    """
    sifted = Sifted([])
    sides: dict[str, Counter[str]] = defaultdict(Counter)
    for vote in votes:
        if vote.preference in CLEAR:
            sides[vote.rater][vote.preference] += 1
    sifted.one_sided = sorted(
        rater for rater, counts in sides.items() if len(counts) == 1 and counts.total() >= limits.one_sided
    )
    for vote in votes:
        if reason := _fault(vote, limits, set(sifted.one_sided), fits):
            sifted.refused[reason] += 1
        else:
            sifted.kept.append(vote)
    balance: dict[object, int] = defaultdict(int)
    for vote in sifted.kept:
        balance[_question(vote)] += _direction(vote)
    agreed = [vote for vote in sifted.kept if not _direction(vote) or _direction(vote) * balance[_question(vote)] > 0]
    if contradicted := len(sifted.kept) - len(agreed):
        sifted.refused["contradicted"] = contradicted
    sifted.kept = agreed
    return sifted


def _fault(
    vote: PersonVote, limits: Limits, one_sided: set[str], fits: Callable[[Sequence[Message]], bool] | None
) -> str | None:
    clear = vote.preference in CLEAR
    if clear and not (vote.answer_a.strip() and vote.answer_b.strip()):
        return "empty_answer"
    if clear and vote.answer_a == vote.answer_b:
        return "identical_answers"
    if fits is not None and not fits(vote.prompt):
        return "prompt_too_long"
    if vote.seconds is not None and vote.seconds < limits.seconds:
        return "too_fast"
    return "one_sided_rater" if vote.rater in one_sided else None


def _question(vote: PersonVote) -> tuple[object, ...]:
    """The prompt with both answers, whichever stood on which side."""
    return tuple((m.role, m.content) for m in vote.prompt), *sorted((vote.answer_a, vote.answer_b))


def _direction(vote: PersonVote) -> int:
    """1 if the answer that is first in the alphabet was preferred, -1 if the other, 0 for neither."""
    if vote.preference not in CLEAR or vote.answer_a == vote.answer_b:
        return 0
    return 1 if (vote.answer_a < vote.answer_b) == (vote.preference == "a") else -1


def agreement(votes: Iterable[PersonVote], *, clear_only: bool = False) -> tuple[float, int]:
    """(share, count) of the pairs of raters who voted alike on the same two answers to the same prompt, sides told
    apart; (nan, 0) if no two raters did. `clear_only`: pairs of votes that both name a side."""
    asked: dict[object, list[tuple[str, str | int]]] = defaultdict(list)
    for vote in votes:
        direction = _direction(vote)
        if direction or not clear_only:
            asked[_question(vote)].append((vote.rater, direction or vote.preference))
    alike = [
        said == other
        for given in asked.values()
        for (rater, said), (second, other) in combinations(given, 2)
        if rater != second
    ]
    return (sum(alike) / len(alike), len(alike)) if alike else (float("nan"), 0)


def bias(sides: Sequence[tuple[str, int, int]]) -> dict[str, float]:
    """How clear votes lean, from (preference, length of a, length of b): to side a, and to the longer answer.

    A share without votes is left out. Lengths are in characters; answers of one length say nothing of length.
    """
    figures: dict[str, float] = {}
    clear = [(preference == "a", a - b) for preference, a, b in sides if preference in CLEAR]
    if clear:
        figures["side_a_share"] = sum(left for left, _ in clear) / len(clear)
    if longer := [left == (difference > 0) for left, difference in clear if difference]:
        figures["longer_preferred_share"] = sum(longer) / len(longer)
        figures["longer_preferred_pairs"] = len(longer)
    return figures


def warnings(figures: dict[str, float], votes: int) -> list[str]:
    """Sentences about shares that lie outside their limits by more than chance would have it."""
    found = []
    side, spread = figures.get("side_a_share", 0.5), 2 * (0.25 / max(1, votes)) ** 0.5
    if votes >= LEAST and abs(side - 0.5) > max(0.05, spread):
        found.append(f"{side:.0%} of the clear votes went to the left answer: were sides shuffled, and looked at?")
    longer, pairs = figures.get("longer_preferred_share", 0.5), figures.get("longer_preferred_pairs", 0)
    if pairs >= LEAST and longer > 0.75:
        found.append(f"{longer:.0%} of the clear votes went to the longer answer: the reward may learn length alone")
    alike, compared = figures.get("people_agreement_clear", 1.0), figures.get("people_agreement_clear_pairs", 0)
    if compared >= LEAST and alike < 0.6:
        found.append(f"raters agree in {alike:.0%} of their clear votes on the same answers: little can be learned")
    return found


def raters_table(votes: Sequence[PersonVote], refused: Sequence[str]) -> list[Row]:
    """A row for each rater: votes, clear ones, lean to the left and to the longer answer, median seconds."""
    by_rater: dict[str, list[PersonVote]] = defaultdict(list)
    for vote in votes:
        by_rater[vote.rater].append(vote)
    rows: list[Row] = []
    for rater, given in sorted(by_rater.items()):
        leans = bias([(vote.preference, len(vote.answer_a), len(vote.answer_b)) for vote in given])
        seconds = [vote.seconds for vote in given if vote.seconds is not None]
        rows.append(
            {
                "rater": rater[:12],
                "votes": len(given),
                "clear": sum(vote.preference in CLEAR for vote in given),
                "left": _rounded(leans.get("side_a_share")),
                "longer": _rounded(leans.get("longer_preferred_share")),
                "median seconds": round(median(seconds), 1) if seconds else None,
                "used": "no: one side only" if rater in refused else "yes",
            }
        )
    return rows


def _rounded(share: float | None) -> float | None:
    return None if share is None else round(share, 3)

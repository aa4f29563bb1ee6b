"""What a reward model has to beat: preferring the longer answer, and counting words."""

from __future__ import annotations

import math
import random
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from llm_core.feedback.preferences import Pair

_WORD = re.compile(r"\w+|[^\w\s]")


def right_by_length(train: Sequence[Pair], held_out: Sequence[Pair]) -> list[float]:
    """Of each held-out pair, 1 if length alone gets it right, longer or shorter as the training pairs say; ties 0.5."""
    longer = 1 if sum(_sign(pair) for pair in train) >= 0 else -1
    return [0.5 + 0.5 * longer * _sign(pair) for pair in held_out]


def _sign(pair: Pair) -> int:
    difference = len(pair.chosen) - len(pair.rejected)
    return (difference > 0) - (difference < 0)


def right_by_words(train: Sequence[Pair], held_out: Sequence[Pair]) -> list[float]:
    """The same for word counts; see `word_weights`."""
    weights = word_weights(train)
    margins = [word_score(weights, pair.chosen) - word_score(weights, pair.rejected) for pair in held_out]
    return [0.5 if abs(margin) < 1e-12 else float(margin > 0) for margin in margins]


def word_weights(
    train: Sequence[Pair], *, epochs: int = 5, rate: float = 0.1, decay: float = 1e-3
) -> Mapping[str, float]:
    """Weight of each word in a Bradley-Terry model on logarithmic word counts of the answers, by plain SGD."""
    weights: dict[str, float] = defaultdict(float)
    order = [_difference(pair) for pair in train]
    shuffle = random.Random(0).shuffle
    for _ in range(epochs):
        shuffle(order)
        for features in order:
            margin = sum(weights[word] * value for word, value in features.items())
            slope = 1 / (1 + math.exp(min(margin, 50.0)))
            for word, value in features.items():
                weights[word] += rate * (slope * value - decay * weights[word])
    return dict(weights)


def word_score(weights: Mapping[str, float], answer: str) -> float:
    """An answer's score under `word_weights`; words that were never seen count nothing."""
    return math.fsum(weights.get(word, 0.0) * value for word, value in _counts(answer).items())


def _difference(pair: Pair) -> dict[str, float]:
    chosen, rejected = _counts(pair.chosen), _counts(pair.rejected)
    words = sorted(chosen.keys() | rejected.keys())
    values = {word: chosen.get(word, 0.0) - rejected.get(word, 0.0) for word in words}
    return {word: value for word, value in values.items() if value}


def _counts(answer: str) -> dict[str, float]:
    return {word: math.log1p(count) for word, count in Counter(_WORD.findall(answer.lower())).items()}

"""Where a reward model can be trusted: accuracy by margin and by length, and whether its margins are probabilities.

A margin is the score of the chosen answer less that of the rejected one, before any normalisation: sigmoid(margin) is
then the chance that a rater prefers the chosen answer (Bradley-Terry). Imports numpy only.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Row = dict[str, str | float]
BINS = 5


def right(margins: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
    """1 where the chosen answer scores higher, 0 where lower, 0.5 where alike."""
    found = np.asarray(margins, dtype=np.float64)
    return np.where(found == 0, 0.5, (found > 0).astype(np.float64))


def by_margin(margins: Sequence[float], bins: int = BINS) -> list[Row]:
    """Accuracy in equally filled bins of |margin|, the smallest margins first."""
    sizes, correct = np.abs(np.asarray(margins, dtype=np.float64)), right(margins)
    parts = np.array_split(np.argsort(sizes, kind="stable"), min(bins, len(sizes)))
    names = [f"{sizes[part[0]]:.2f} to {sizes[part[-1]]:.2f}" for part in parts]
    return [
        {"margin": name, "pairs": len(part), "accuracy": _share(correct, part)}
        for name, part in zip(names, parts, strict=True)
    ]


def by_length(margins: Sequence[float], chosen: Sequence[int], rejected: Sequence[int]) -> list[Row]:
    """Accuracy where the chosen answer is shorter than the other, alike or longer: a score that pays for length is
    worse on one side."""
    signs, correct = np.sign(np.asarray(chosen) - np.asarray(rejected)), right(margins)
    rows: list[Row] = []
    for sign, name in ((-1, "shorter"), (0, "of the same length"), (1, "longer")):
        part = np.flatnonzero(signs == sign)
        if len(part):
            rows.append({"chosen answer is": name, "pairs": len(part), "accuracy": _share(correct, part)})
    return rows


def reliability(margins: Sequence[float], bins: int = BINS) -> list[Row]:
    """Confidence max(p, 1 - p) with p = sigmoid(margin) in bins of equal width from 0.5 to 1, beside the accuracy."""
    confidence, correct, place = _confidence(margins, bins)
    width = 0.5 / bins
    rows: list[Row] = []
    for number in range(bins):
        part = np.flatnonzero(place == number)
        if len(part):
            low = 0.5 + number * width
            rows.append(
                {
                    "confidence": f"{low:.2f} to {low + width:.2f}",
                    "pairs": len(part),
                    "said": _share(confidence, part),
                    "accuracy": _share(correct, part),
                }
            )
    return rows


def calibration_error(margins: Sequence[float], bins: int = BINS) -> float:
    """Expected calibration error (Guo et al. 2017): mean |accuracy - confidence| of the bins, weighed by pairs."""
    confidence, correct, place = _confidence(margins, bins)
    gaps = [abs(float((correct - confidence)[place == number].sum())) for number in range(bins)]
    return sum(gaps) / len(confidence)


def _confidence(
    margins: Sequence[float], bins: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    sizes = np.abs(np.asarray(margins, dtype=np.float64))
    confidence = 1 / (1 + np.exp(-sizes))
    place = np.minimum(((confidence - 0.5) / (0.5 / bins)).astype(np.int64), bins - 1)
    return confidence, right(margins), place


def _share(values: NDArray[np.float64], part: NDArray[np.int64]) -> float:
    return round(float(values[part].mean()), 4)

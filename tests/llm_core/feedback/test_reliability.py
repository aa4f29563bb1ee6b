"""Tables of a reward model's margins, beside scikit-learn's calibration curve and counts by hand."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.calibration import calibration_curve

from llm_core.feedback.reliability import by_length, by_margin, calibration_error, reliability, right


def drawn(count: int, honest: float, seed: int = 0) -> list[float]:
    """Margins of a score whose pairs are right as often as sigmoid(`honest` x margin) says."""
    draw = np.random.default_rng(seed)
    sizes = draw.exponential(1.5, size=count)
    agrees = draw.random(count) < 1 / (1 + np.exp(-honest * sizes))
    return list(np.where(agrees, sizes, -sizes))


def test_the_curve_is_scikit_learns() -> None:
    margins = drawn(3000, 1.0)
    confidence = 1 / (1 + np.exp(-np.abs(margins)))
    shares, said = calibration_curve(right(margins), confidence, n_bins=10)
    rows = reliability(margins, bins=5)
    assert [row["accuracy"] for row in rows] == pytest.approx(list(shares), abs=1e-4)
    assert [row["said"] for row in rows] == pytest.approx(list(said), abs=1e-4)
    counts = [float(row["pairs"]) for row in rows]
    expected = sum(n * abs(a - s) for n, a, s in zip(counts, shares, said, strict=True)) / 3000
    assert calibration_error(margins) == pytest.approx(expected, abs=1e-9)


def test_a_boaster_is_found_out() -> None:
    assert calibration_error(drawn(4000, 1.0)) < 0.03
    assert calibration_error(drawn(4000, 0.2)) > 0.1


def test_accuracy_by_margin_and_length() -> None:
    margins = [0.1, -0.2, 0.3, 0.4, 0.0, 2.0]
    rows = by_margin(margins, bins=3)
    assert [row["pairs"] for row in rows] == [2, 2, 2]
    assert [row["accuracy"] for row in rows] == [0.75, 0.5, 1.0]
    rows = by_length(margins, [3, 3, 9, 9, 4, 4], [5, 5, 1, 1, 4, 4])
    found = {row["chosen answer is"]: row["accuracy"] for row in rows}
    assert found == {"shorter": 0.5, "of the same length": 0.75, "longer": 1.0}
    assert right([1.0, 0.0, -1.0]).tolist() == [1.0, 0.5, 0.0]

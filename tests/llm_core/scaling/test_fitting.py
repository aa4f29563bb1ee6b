"""The fit recovers planted laws, noise included; isoFLOP parabolas find the lowest points."""

from __future__ import annotations

import math

import numpy as np
import pytest

from llm_core.contract import BadInput
from llm_core.scaling import fitting
from llm_core.scaling.fitting import Point, fit_law, growth, valleys
from llm_core.scaling.laws import EPOCH, HOFFMANN, Law

OTHER = Law(E=1.2, A=30, B=200, alpha=0.25, beta=0.4)


def planted(law: Law, noise: float = 0.0, seed: int = 0) -> list[Point]:
    """Seven budgets of seven sizes, each loss off by a normal share of `noise`."""
    random = np.random.default_rng(seed)
    points = []
    for flops in np.geomspace(1e15, 1e21, 7):
        size, tokens = law.optimum(flops)
        for factor in np.geomspace(1 / 8, 8, 7):
            loss = law.loss(size * factor, tokens / factor) * math.exp(noise * random.standard_normal())
            points.append(Point(size * factor, tokens / factor, flops, loss))
    return points


@pytest.mark.parametrize("law", [EPOCH, HOFFMANN, OTHER])
@pytest.mark.parametrize(("noise", "within"), [(0.0, 1e-6), (0.003, 0.05)])
def test_planted_exponents_are_recovered(law: Law, noise: float, within: float) -> None:
    found = fit_law(planted(law, noise), bootstrap=0).law
    assert found.alpha == pytest.approx(law.alpha, rel=within)
    assert found.beta == pytest.approx(law.beta, rel=within)
    assert abs(found.E / law.E - 1) < within
    assert found.exponents == pytest.approx(law.exponents, rel=within)


def test_outliers_are_clipped_by_the_huber_loss() -> None:
    points = planted(EPOCH)
    spoiled = [
        Point(p.parameters, p.tokens, p.flops, p.loss * (1.3 if i % 12 == 0 else 1)) for i, p in enumerate(points)
    ]
    found = fit_law(spoiled, bootstrap=0).law
    assert found.alpha == pytest.approx(EPOCH.alpha, rel=0.02)
    assert found.beta == pytest.approx(EPOCH.beta, rel=0.02)


def test_the_gradient_is_that_of_the_loss() -> None:
    logs = np.log([[p.parameters, p.tokens, p.loss * 1.001] for p in planted(OTHER, 0.002)])
    at = np.array([4.0, 5.0, 0.3, 0.3, 0.35])
    _, gradient = fitting._objective(at, logs, 1e-3)
    for place in range(5):
        step = np.zeros(5)
        step[place] = 1e-6
        difference = (
            fitting._objective(at + step, logs, 1e-3)[0] - fitting._objective(at - step, logs, 1e-3)[0]
        ) / 2e-6
        assert gradient[place] == pytest.approx(difference, rel=1e-4)


def test_intervals_hold_the_truth_and_do_not_depend_on_chance() -> None:
    points = planted(OTHER, 0.002)
    fit, again = fit_law(points, bootstrap=30), fit_law(points, bootstrap=30)
    assert fit == again
    for name, truth in (("alpha", OTHER.alpha), ("beta", OTHER.beta), ("E", OTHER.E), ("a", OTHER.exponents[0])):
        interval = fit.intervals[name]
        assert interval.low <= interval.value <= interval.high
        assert abs(interval.value - truth) < interval.high - interval.low  # about four standard errors
        assert interval.high - interval.low < 0.5 * truth
    assert 0.0005 < fit.residual < 0.004
    assert fit.law.smallest == min(point.parameters for point in points)


def test_the_order_of_the_runs_does_not_matter() -> None:
    points = planted(OTHER, 0.002)
    first, second = fit_law(points, bootstrap=0).law, fit_law(points[::-1], bootstrap=0).law
    assert second.alpha == pytest.approx(first.alpha, rel=1e-4)


def test_parabolas_find_the_best_sizes() -> None:
    found = valleys(planted(EPOCH))
    assert len(found) == 7
    assert all(valley.inside for valley in found)
    for valley in found:
        size, tokens = EPOCH.optimum(valley.flops)
        assert valley.best_parameters == pytest.approx(size, rel=0.15)
        assert valley.best_tokens == pytest.approx(tokens, rel=0.15)
    assert growth(found) == pytest.approx(EPOCH.exponents, abs=0.01)


def test_a_budget_without_a_lowest_point_gives_none() -> None:
    falling = [Point(n, 1e6, 1e12, 5 - 0.01 * math.log(n) ** 2) for n in (1e4, 1e5, 1e6)]
    two_sizes = [Point(n, 1e6, 3e12, 4.0) for n in (1e4, 1e5)]
    assert valleys([*falling, *two_sizes]) == []
    assert growth([]) is None


def test_too_few_or_too_equal_runs_are_refused() -> None:
    with pytest.raises(BadInput, match="5 runs are too few"):
        fit_law(planted(EPOCH)[:5])
    same = [Point(1e6, 1e6 * k, 1e12, 3.0) for k in range(1, 9)]
    with pytest.raises(BadInput, match="different numbers of parameters"):
        fit_law(same)
    with pytest.raises(BadInput, match="loss"):
        Point(1e6, 1e6, 1e12, float("nan"))

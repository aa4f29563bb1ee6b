"""How sure a measured average is: bootstrap intervals for means and for paired differences. Imports numpy only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

_FEW_VALUES = 64  # with at most so many distinct values a resample is drawn as their counts, which is far cheaper


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean of `n` values with its bootstrap interval and standard error, all in the values' unit."""

    value: float
    low: float
    high: float
    n: int
    error: float

    def as_dict(self) -> dict[str, float]:
        """The same figures for JSON, rounded to 1e-6 so that they are stable to print."""
        figures = {"value": self.value, "low": self.low, "high": self.high, "error": self.error}
        return {name: round(figure, 6) for name, figure in figures.items()} | {"n": self.n}


def mean_interval(
    values: Sequence[float] | NDArray[np.float64], *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Interval:
    """Percentile bootstrap (Efron 1979) of the mean. Deterministic in `seed`. Raises `ValueError` without values."""
    array = np.asarray(values, dtype=np.float64)
    n = len(array)
    if n == 0:
        raise ValueError("no values to average")
    means = _resampled_means(array, resamples, np.random.default_rng(seed))
    tail = (1 - confidence) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    error = float(array.std(ddof=1) / np.sqrt(n)) if n > 1 else 0.0
    return Interval(float(array.mean()), float(low), float(high), n, error)


def paired_difference(
    values: Sequence[float] | NDArray[np.float64],
    others: Sequence[float] | NDArray[np.float64],
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Mean of `values` - `others`, which belong to the same prompts in the same order; prompts are resampled."""
    difference = np.asarray(values, dtype=np.float64) - np.asarray(others, dtype=np.float64)
    return mean_interval(difference, confidence=confidence, resamples=resamples, seed=seed)


def detectable_difference(error: float, *, confidence: float = 0.95, power: float = 0.8) -> float:
    """The smallest true difference that a comparison with this standard error finds with the given power."""
    normal = NormalDist()
    return (normal.inv_cdf((1 + confidence) / 2) + normal.inv_cdf(power)) * error


def _resampled_means(array: NDArray[np.float64], resamples: int, rng: np.random.Generator) -> NDArray[np.float64]:
    n = len(array)
    distinct, counts = np.unique(array, return_counts=True)
    if len(distinct) <= _FEW_VALUES:
        drawn = rng.multinomial(n, counts / n, size=resamples)
        return np.asarray(drawn @ distinct / n)
    means = np.empty(resamples)
    for i in range(resamples):
        means[i] = array[rng.integers(0, n, n)].mean()
    return means

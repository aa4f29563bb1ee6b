"""Fit a scaling law to runs, in the two ways of Hoffmann et al. 2022 (arXiv:2203.15556).

Approach 3: the five numbers of L(N, D) = E + A / N^alpha + B / D^beta at once, by the Huber loss of log L, minimised by
L-BFGS from a grid of starts. The loss is summed over the runs, not averaged, and run to tight tolerances: Besiroglu et
al. 2024 traced the printed constants to a minimiser that stopped early. Intervals are from the bootstrap over runs.

Approach 2: at each compute budget a parabola of the loss over log N, whose lowest point is the best size.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize  # type: ignore[import-untyped]
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from llm_core.contract import BadInput
from llm_core.scaling.laws import Law

Array = npt.NDArray[np.float64]
FEWEST = 6
"""Runs that five numbers need at the least, and one to spare."""
GRID = tuple(
    itertools.product(
        np.arange(0.0, 26.0, 5.0),  # log A
        np.arange(0.0, 26.0, 5.0),  # log B
        (-1.0, -0.5, 0.0, 0.5, 1.0),  # log E
        (0.1, 0.25, 0.5, 1.0, 1.5),  # alpha
        (0.1, 0.25, 0.5, 1.0, 1.5),  # beta
    )
)
BOUNDS = ((-10.0, 50.0), (-10.0, 50.0), (-10.0, 3.0), (0.01, 3.0), (0.01, 3.0))


@dataclass(frozen=True)
class Point:
    """One run: all its parameters, the tokens it saw, the FLOPs it cost, and its held-out loss in nats per token."""

    parameters: float
    tokens: float
    flops: float
    loss: float

    def __post_init__(self) -> None:
        for name in ("parameters", "tokens", "flops", "loss"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise BadInput(f"scaling run: {name} = {value} must be a number above 0")


@dataclass(frozen=True)
class Interval:
    """A fitted number and where it lies in 95% of the bootstrap's fits."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Fit:
    """A fitted law, how far its losses lie from the runs' (root mean square, relative), and its intervals.

    `intervals` holds E, A, B, alpha, beta, and a and b of the compute-optimal line N ~ C^a, D ~ C^b.
    """

    law: Law
    residual: float
    intervals: dict[str, Interval]


@dataclass(frozen=True)
class Valley:
    """The isoFLOP curve of one budget: `best_parameters` and `best_tokens` at the lowest point of its parabola.

    `inside`: whether that point lies between the smallest and the largest model that was run.
    """

    flops: float
    best_parameters: float
    best_tokens: float
    loss: float
    inside: bool


def fit_law(points: Sequence[Point], *, delta: float = 1e-3, bootstrap: int = 200, seed: int = 0,
            name: str = "own ladder", source: str = "") -> Fit:  # fmt: skip
    """The law of the runs. `delta`: where the Huber loss of log L turns from square to linear; `bootstrap`: resamples.

    Raises `BadInput` for fewer than six runs, or runs that do not differ in both size and tokens.
    """
    if len(points) < FEWEST:
        raise BadInput(f"scaling law: {len(points)} runs are too few for five numbers, {FEWEST} are the least")
    for what in ("parameters", "tokens"):
        if len({getattr(point, what) for point in points}) < 3:
            raise BadInput(f"scaling law: the runs need at least three different numbers of {what}")
    data = np.array([[p.parameters, p.tokens, p.loss] for p in points])
    logs = np.log(data)
    with threadpool_limits(1):  # five numbers: threads only wait for each other, on a busy machine for 10 ms a step
        best = _search(logs, delta)
        intervals = _intervals(logs, best, delta, bootstrap, seed)
    law = _law(best, name, source, smallest=min(point.parameters for point in points))
    found = np.array([law.loss(p.parameters, p.tokens) for p in points])
    return Fit(law, float(np.sqrt(np.mean((found / data[:, 2] - 1) ** 2))), intervals)


def _law(values: Array, name: str = "", source: str = "", smallest: float = 0.0) -> Law:
    a, b, e, alpha, beta = (float(value) for value in values)
    return Law(math.exp(e), math.exp(a), math.exp(b), alpha, beta, name, source, smallest)


def _objective(values: Array, logs: Array, delta: float) -> tuple[float, Array]:
    """Summed Huber loss of log L and its gradient; `values` are log A, log B, log E, alpha, beta; logs [runs, 3]."""
    a, b, e, alpha, beta = values
    terms = np.stack([a - alpha * logs[:, 0], b - beta * logs[:, 1], np.full(len(logs), e)])
    top = terms.max(axis=0)
    shares = np.exp(terms - top)
    total = shares.sum(axis=0)
    error = top + np.log(total) - logs[:, 2]
    shares /= total
    size = np.abs(error)
    value = np.where(size <= delta, 0.5 * error**2, delta * (size - 0.5 * delta)).sum()
    slope = np.clip(error, -delta, delta)
    pull = shares * slope
    gradient = np.array(
        [pull[0].sum(), pull[1].sum(), pull[2].sum(), -(pull[0] * logs[:, 0]).sum(), -(pull[1] * logs[:, 1]).sum()]
    )
    scale = 1 / delta**2  # the sum is tiny; in units of delta the minimiser's tolerances mean something
    return float(value * scale), gradient * scale


def _minimise(start: Array, logs: Array, delta: float) -> tuple[float, Array]:
    options = {"maxiter": 5000, "maxfun": 20000, "ftol": 1e-13, "gtol": 1e-9}
    done = minimize(_objective, start, (logs, delta), method="L-BFGS-B", jac=True, bounds=BOUNDS, options=options)
    return float(done.fun), np.asarray(done.x)


def _search(logs: Array, delta: float, tried: int = 24) -> Array:
    """The best minimum from the `tried` most promising starts of the grid."""
    grid = np.array(GRID)
    terms = np.stack(
        [
            grid[:, :1] - grid[:, 3:4] * logs[:, 0],
            grid[:, 1:2] - grid[:, 4:5] * logs[:, 1],
            np.broadcast_to(grid[:, 2:3], (len(grid), len(logs))),
        ]
    )
    error = np.abs(np.logaddexp.reduce(terms, axis=0) - logs[:, 2])
    order = np.argsort(error.sum(axis=1), kind="stable")[:tried]
    found = [_minimise(grid[index], logs, delta) for index in order]
    return min(found, key=lambda pair: pair[0])[1]


def _intervals(logs: Array, best: Array, delta: float, bootstrap: int, seed: int) -> dict[str, Interval]:
    random = np.random.default_rng(seed)
    fits = [best]
    for _ in range(bootstrap):
        chosen = logs[random.integers(len(logs), size=len(logs))]
        fits.append(_minimise(best, chosen, delta)[1])
    laws = [_law(values) for values in fits]
    columns = {key: [getattr(law, key) for law in laws] for key in ("E", "A", "B", "alpha", "beta")}
    columns |= {"a": [law.exponents[0] for law in laws], "b": [law.exponents[1] for law in laws]}
    low_high = {key: np.quantile(values[1:] or values, (0.025, 0.975)) for key, values in columns.items()}
    return {key: Interval(values[0], *map(float, low_high[key])) for key, values in columns.items()}


def valleys(points: Sequence[Point], tolerance: float = 0.05) -> list[Valley]:
    """The isoFLOP curves: budgets (equal within `tolerance`) with three or more sizes and a lowest point, in order."""
    groups: list[list[Point]] = []
    for point in sorted(points, key=lambda point: point.flops):
        if groups and abs(math.log(point.flops / groups[-1][0].flops)) <= tolerance:
            groups[-1].append(point)
        else:
            groups.append([point])
    found = [_valley(group) for group in groups if len({point.parameters for point in group}) >= 3]
    return [valley for valley in found if valley is not None]


def _valley(group: Sequence[Point]) -> Valley | None:
    sizes = np.log([point.parameters for point in group])
    curve, slope, _ = fitted = np.polyfit(sizes, [point.loss for point in group], 2)
    if curve <= 0:
        return None
    lowest = -slope / (2 * curve)
    tokens = np.polyfit(sizes, np.log([point.tokens for point in group]), 1)
    return Valley(
        flops=float(np.exp(np.mean(np.log([point.flops for point in group])))),
        best_parameters=math.exp(lowest),
        best_tokens=float(np.exp(np.polyval(tokens, lowest))),
        loss=float(np.polyval(fitted, lowest)),
        inside=bool(sizes.min() <= lowest <= sizes.max()),
    )


def growth(found: Sequence[Valley]) -> tuple[float, float] | None:
    """(a, b) of N ~ C^a and D ~ C^b through the lowest points of two or more isoFLOP curves."""
    inner = [valley for valley in found if valley.inside]
    if len({valley.flops for valley in inner}) < 2:
        return None
    flops = np.log([valley.flops for valley in inner])
    a = np.polyfit(flops, np.log([valley.best_parameters for valley in inner]), 1)[0]
    b = np.polyfit(flops, np.log([valley.best_tokens for valley in inner]), 1)[0]
    return float(a), float(b)

"""Learning-rate schedules: functions of the step that give a factor on the base rates."""

from __future__ import annotations

import math
from collections.abc import Callable

from llm_core.contract import BadInput

Schedule = Callable[[int], float]


def cosine(steps: int, warmup: float = 0.02, floor: float = 0.1) -> Schedule:
    """Rise linearly over the share `warmup` of the steps, then fall along half a cosine to `floor`."""
    rise = round(warmup * steps)

    def factor(step: int) -> float:
        if step < rise:
            return (step + 1) / rise
        through = (step - rise) / max(1, steps - rise)
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, through)))

    return factor


def warmup_stable_decay(steps: int, warmup: float = 0.02, decay: float = 0.6, floor: float = 0.05) -> Schedule:
    """Rise linearly, stay at 1, then fall linearly to `floor` over the last share `decay` of the steps.

    Hu et al. 2024 (MiniCPM); the fall as a straight line, as Hägele et al. 2024 found best.
    """
    rise, fall = round(warmup * steps), round(decay * steps)

    def factor(step: int) -> float:
        if step < rise:
            return (step + 1) / rise
        left = steps - step
        return 1.0 if left >= fall else floor + (1 - floor) * max(0, left) / max(1, fall)

    return factor


def make_schedule(name: str, steps: int, warmup: float, decay: float, floor: float) -> Schedule:
    """The schedule called `name`: "wsd" or "cosine" (which has no use for `decay`)."""
    if name == "wsd":
        return warmup_stable_decay(steps, warmup, decay, floor)
    if name == "cosine":
        return cosine(steps, warmup, floor)
    raise BadInput(f"schedule.name: {name!r} is neither 'wsd' nor 'cosine'")

"""How fast a device trains a model: measured here, or from a table of published figures.

Small models use a device badly. Both kinds of device say so: a measured one by the speeds at several sizes, one of the
table by the share of its peak that a model reaches, `most_used` * width / (width + `knee`), which rises with the width
of the matrices. Where two published runs on a device are known, the numbers go through both; else they are assumed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from llm_core.contract import BadInput
from llm_core.model.config import ModelConfig

GIB = 1 << 30


@dataclass(frozen=True)
class Speed:
    """What was measured at one size: the model's FLOPs a token and the tokens it trained in a second."""

    flops_per_token: float
    tokens_per_second: float


@dataclass(frozen=True)
class Device:
    """A machine to train on. `peak` in FLOP/s of matrix products; `memory` in bytes; `source` of these figures."""

    name: str
    peak: float
    memory: int
    most_used: float
    """Share of the peak that a very wide model reaches in training."""
    knee: float
    """Width at which half of that share is reached."""
    source: str
    speeds: tuple[Speed, ...] = ()
    """Measured speeds; where there are any, they count instead of peak and share."""
    cores: int = 0
    """CPU cores; 0 for a GPU."""

    @property
    def precision(self) -> str:
        """Number format of the products: fp32 on a CPU, bf16 on a GPU."""
        return "fp32" if self.cores else "bf16"

    def flops_per_second(self, shape: ModelConfig) -> float:
        """FLOP/s in training a model of this shape; between measured sizes interpolated, beyond them held."""
        if not self.speeds:
            return self.peak * self.most_used * shape.width / (shape.width + self.knee)
        return _interpolated([(s.flops_per_token, s.flops_per_token * s.tokens_per_second) for s in self.speeds],
                             shape.flops_per_token())  # fmt: skip

    def tokens_per_second(self, shape: ModelConfig) -> float:
        """Tokens trained in a second."""
        return self.flops_per_second(shape) / shape.flops_per_token()


def _interpolated(points: Sequence[tuple[float, float]], at: float) -> float:
    """Piecewise linear in the logarithms of both; held beyond the ends."""
    known = sorted(points)
    if at <= known[0][0]:
        return known[0][1]
    for (low, first), (high, second) in itertools.pairwise(known):
        if at <= high:
            share = math.log(at / low) / math.log(high / low) if high > low else 1.0
            return math.exp(math.log(first) + share * math.log(second / first))
    return known[-1][1]


NVIDIA = "NVIDIA's data sheet, dense bf16"
CPU_SOURCE = (
    "assumed: 70 GFLOP/s a core in fp32, as measured on an AVX2 EPYC with two cores; share of that in training from "
    "nanoGPT there: 40% at width 128, 58% at 288"
)
TABLE: dict[str, Device] = {
    device.name: device
    for device in (
        Device("H100", 989e12, 80 * GIB, 0.667, 512,
               f"{NVIDIA}; share of peak through llm.c's 40% at width 768 and nanochat's 50% at width 1536"),
        Device("H200", 989e12, 141 * GIB, 0.70, 512,
               f"{NVIDIA}; share of peak from modded-nanogpt's plain script: 42% at width 768"),
        Device("A100", 312e12, 80 * GIB, 0.80, 256,
               f"{NVIDIA}; share of peak from llm.c's 60% at width 768, its rise with width assumed"),
        Device("4090", 165e12, 24 * GIB, 0.60, 192,
               "NVIDIA's Ada white paper, dense bf16 with fp32 sums; share of peak assumed: 48% at width 768"),
        Device("L4", 121e12, 24 * GIB, 0.40, 128,
               f"{NVIDIA}; share of peak assumed: 34% at width 768, as its 72 W do not hold the clock"),
        Device("cpu-2", 2 * 70e9, 8 * GIB, 0.90, 161, CPU_SOURCE, cores=2),
        Device("cpu-8", 8 * 70e9, 16 * GIB, 0.80, 220, f"{CPU_SOURCE}; less for more cores: assumed", cores=8),
        Device("cpu-32", 32 * 70e9, 64 * GIB, 0.65, 350, f"{CPU_SOURCE}; less for more cores: assumed", cores=32),
    )
}  # fmt: skip
"""Devices by name."""


def device(name: str) -> Device:
    """The device called `name`, upper or lower case. Raises `BadInput`."""
    for known, found in TABLE.items():
        if known.lower() == name.lower():
            return found
    raise BadInput(f"--device {name}: is none of {', '.join(TABLE)}; leave it out to measure this machine")


def recognised(name: str) -> Device | None:
    """The device of the table that a driver's name such as "NVIDIA H100 80GB HBM3" speaks of, if there is one."""
    words = name.upper().replace("-", " ").split()
    return next((found for known, found in TABLE.items() if not found.cores and known in words), None)

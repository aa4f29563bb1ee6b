"""What a training process asks of the machine: threads, device, number format, allocator."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from llm_core.contract import BadInput

FORMATS = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""Number formats of the matrix products besides fp32; weights, gradients' sums and optimiser state stay fp32."""


class Precision:
    """The number format of the products, and with fp16 the scale of the loss that keeps small gradients from vanishing.

    Dynamic loss scaling (Micikevicius et al. 2018) with the constants of torch's GradScaler: halve after a step whose
    gradients overflowed, double after 2,000 that did not. GradScaler itself takes only optimisers derived from
    torch.optim, and its state would not fit into a resume point. In a training step:

        with precision.autocast(): loss = ...
        precision.scaled(loss).backward()
        norm = norm_of_gradients / (precision.scale * count)     # divide the gradients by the same number
        precision.update(finite=isfinite(norm))                  # leave the step out if it is not finite
    """

    GROWTH_STEPS = 2000

    def __init__(self, name: str = "fp32", device: str = "cpu") -> None:
        """`name`: "fp32", "bf16" or "fp16". `device`: type of the device, such as "cuda"."""
        if name != "fp32" and name not in FORMATS:
            raise BadInput(f"precision: {name!r} is none of fp32, {', '.join(FORMATS)}")
        self.name, self.device = name, device
        self.scale = 65536.0 if name == "fp16" else 1.0
        self.good_steps = 0

    def autocast(self) -> AbstractContextManager[object]:
        """The context to run a forward pass in."""
        return nullcontext() if self.name == "fp32" else torch.autocast(self.device, dtype=FORMATS[self.name])

    def scaled(self, loss: Tensor) -> Tensor:
        """The loss to call backward on."""
        return loss if self.scale == 1.0 else loss * self.scale

    def update(self, finite: bool) -> None:
        """Adapt the scale after a step; `finite`: whether all its gradients were."""
        if self.name != "fp16":
            return
        self.good_steps = self.good_steps + 1 if finite else 0
        if not finite:
            self.scale = max(1.0, self.scale / 2)
        elif self.good_steps == self.GROWTH_STEPS:
            self.scale, self.good_steps = self.scale * 2, 0

    def state(self) -> dict[str, float]:
        """What a resume point has to keep."""
        return {"scale": self.scale, "good_steps": float(self.good_steps)}

    def load(self, state: Mapping[str, float]) -> None:
        """Take over what `state` gave."""
        self.scale, self.good_steps = float(state["scale"]), int(state["good_steps"])


@dataclass(frozen=True)
class Machine:
    """Where to compute, in which number format ("fp32", "bf16", "fp16"), and how many passes may run side by side."""

    device: torch.device
    precision: str
    lanes: int = 1

    def autocast(self) -> AbstractContextManager[object]:
        """The context to run a forward pass in."""
        return Precision(self.precision, self.device.type).autocast()

    def make_precision(self) -> Precision:
        """A fresh `Precision` for one training run."""
        return Precision(self.precision, self.device.type)


def prepare(threads: int = 0, device: str = "auto", precision: str = "auto", lanes: int = 1) -> Machine:
    """Set torch's CPU threads (0: all cores this process may use), tune the allocator, choose device and format.

    `lanes`: passes that may run side by side; on a CPU they share the threads, on a GPU there is one. Raises
    `BadInput` if a GPU is asked for and there is none. bf16 is several times slower than fp32 on most CPUs, so "auto"
    takes fp32 there; on a GPU it takes bf16, or fp16 where the GPU has no bf16.
    """
    tune_allocator()
    if device == "cuda" and not torch.cuda.is_available():
        raise BadInput("device: 'cuda' was asked for, but torch sees no GPU; use 'auto' or 'cpu'")
    name = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    if precision == "auto":
        half = "bf16" if name == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
        precision = half if name == "cuda" else "fp32"
    cores = threads or len(os.sched_getaffinity(0))
    lanes = min(lanes, cores) if name == "cpu" else 1
    torch.set_num_threads(max(1, cores // lanes))
    return Machine(torch.device(name), precision, lanes)


def tune_allocator() -> None:
    """Let glibc keep freed memory instead of returning it to the kernel after each large tensor.

    The default gives every tensor above 128 KiB back and faults its pages in again at the next step, which costs about
    a fifth of a training step on a CPU. Other C libraries are left as they are.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    trim_threshold, mmap_threshold, arena_max = -1, -3, -8
    mallopt(mmap_threshold, 1 << 25)  # the most that glibc accepts
    mallopt(trim_threshold, (1 << 31) - 1)
    mallopt(arena_max, 2)

"""What a training process asks of the machine: threads, device, number format, allocator."""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from llm_core.contract import BadInput


@dataclass(frozen=True)
class Machine:
    """Where to compute, in which number format ("fp32" or "bf16"), and how many passes may run side by side."""

    device: torch.device
    precision: str
    lanes: int = 1

    def autocast(self) -> AbstractContextManager[object]:
        """The context to run a forward pass in."""
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)


def prepare(threads: int = 0, device: str = "auto", precision: str = "auto", lanes: int = 1) -> Machine:
    """Set torch's CPU threads (0: all cores this process may use), tune the allocator, choose device and format.

    `lanes`: passes that may run side by side; on a CPU they share the threads, on a GPU there is one. Raises
    `BadInput` if a GPU is asked for and there is none. bf16 is several times slower than fp32 on most CPUs, so "auto"
    takes it on a GPU only.
    """
    tune_allocator()
    if device == "cuda" and not torch.cuda.is_available():
        raise BadInput("device: 'cuda' was asked for, but torch sees no GPU; use 'auto' or 'cpu'")
    name = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    if precision == "auto":
        precision = "bf16" if name == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
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

"""What a device can do at best, and how much memory is used: the figures behind MFU and "out of memory"."""

from __future__ import annotations

import resource
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import torch
from torch import Tensor

CPU_SIDE, GPU_SIDE = 768, 8192
"""Sides of the probe's square matrices."""


@lru_cache(maxsize=8)
def peak_flops(device: str, dtype: torch.dtype = torch.float32, lanes: int = 1) -> float:
    """Floating-point operations a second of a large matrix product, the best of a few; kept for the process.

    `lanes` products run side by side in threads, as training passes do on a CPU. A few hundredths of a second. A
    vendor's figure is what a chip could do; this is what it does here, with the clock and the neighbours it has.
    """
    side = GPU_SIDE if device.startswith("cuda") else CPU_SIDE
    pairs = [torch.ones(2, side, side, dtype=dtype, device=device) for _ in range(lanes)]
    best = float("inf")
    with ThreadPoolExecutor(lanes) as pool:
        for _ in range(5):
            _wait(device)
            began = time.perf_counter()
            list(pool.map(_product, pairs))
            _wait(device)
            best = min(best, time.perf_counter() - began)
    return lanes * 2.0 * side**3 / best


def _product(pair: Tensor) -> Tensor:
    return pair[0] @ pair[1]


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def peak_memory_gb(device: torch.device) -> float:
    """Most memory used so far: of the GPU by tensors, or of this process, in units of 1e9 bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or in the allocator of a CPU."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    told = ("can't allocate memory", "not enough memory")
    return isinstance(error, RuntimeError) and any(words in str(error) for words in told)

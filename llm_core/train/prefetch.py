"""Batches brought to the GPU before they are needed: made in a thread, in pinned memory, copied beside the computing.

Two batches are always under way. A batch is a pure function of its number, so making it early changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import fields, is_dataclass, replace
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

BatchT = TypeVar("BatchT")
AHEAD = 2


class Prefetched(Generic[BatchT]):
    """`batch`, with the tensors of what it gives on `device`, the next ones in the making."""

    def __init__(self, batch: Callable[[int], BatchT], device: torch.device, stride: int = 1) -> None:
        """After batch n, batch n + `stride` is asked for: the ranks take turns."""
        self.batch, self.device, self.stride = batch, device, stride
        self.pool = ThreadPoolExecutor(1)
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self.waiting: dict[int, Future[BatchT]] = {}

    def __call__(self, number: int) -> BatchT:
        """Batch `number`. Out of turn it is made at once."""
        wanted = [number + place * self.stride for place in range(AHEAD + 1)]
        self.waiting = {n: self.waiting.get(n) or self.pool.submit(self._make, n) for n in wanted}
        batch = self.waiting.pop(number).result()
        if self.stream is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_stream(self.stream)
            for tensor in _tensors(batch):
                tensor.record_stream(current)
        return batch

    def _make(self, number: int) -> BatchT:
        batch = self.batch(number)
        if self.stream is None:
            return batch
        with torch.cuda.stream(self.stream):
            moved: BatchT = _moved(batch, self.device)
            return moved

    def close(self) -> None:
        """Forget what is under way."""
        self.pool.shutdown(cancel_futures=True)


def _tensors(batch: Any) -> list[Tensor]:
    if not is_dataclass(batch):
        return []
    values = [getattr(batch, field.name) for field in fields(batch)]
    return [value for value in values if isinstance(value, Tensor)]


def _moved(batch: Any, device: torch.device) -> Any:
    if not is_dataclass(batch) or isinstance(batch, type):
        return batch
    values = {field.name: getattr(batch, field.name) for field in fields(batch)}
    moved = {
        name: value.pin_memory().to(device, non_blocking=True)
        for name, value in values.items()
        if isinstance(value, Tensor) and value.device.type == "cpu"
    }
    return replace(batch, **moved)

"""Whether a step's gradient may be used: finite, and of a loss that is no spike.

A spike is a loss more than `sigma` standard deviations above the mean of the last accepted ones (the rule of OLMo 2,
2025, which skips such steps). Everything stays in tensors on the model's device, so that a GPU need not wait to be
asked; the window is part of the resume point, so that a resumed run decides alike.
"""

from __future__ import annotations

import torch
from torch import Tensor

WINDOW = 128
"""Accepted losses that a new one is compared with; it is judged once half of them are there."""
LEAST_DEVIATION = 0.02
"""In nats: losses that hardly differ, of a model that has learnt all there is, say nothing of what is usual."""


class Guard:
    """Remembers the last losses and judges the next."""

    def __init__(self, device: torch.device, sigma: float) -> None:
        """`sigma` in standard deviations; 0 lets every finite step pass."""
        self.sigma = sigma
        self.losses = torch.full((WINDOW,), torch.nan, dtype=torch.float64, device=device)

    def judge(self, step: int, loss: Tensor, norm: Tensor) -> Tensor:
        """True (0-d) if the step of this mean loss and gradient norm may be taken; remembers the loss if so."""
        good = torch.isfinite(norm) & torch.isfinite(loss)
        if not self.sigma:
            return good
        known = ~torch.isnan(self.losses)
        count = known.sum()
        mean = torch.nan_to_num(self.losses).sum() / count
        deviation = (torch.where(known, self.losses - mean, 0.0).square().sum() / count).sqrt()
        usual = mean + self.sigma * deviation.clamp(min=LEAST_DEVIATION)
        good &= (count < WINDOW // 2) | (loss <= usual)
        self.losses[step % WINDOW] = torch.where(good, loss.double(), torch.nan)
        return good

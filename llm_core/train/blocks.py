"""The blocks of a model while it is trained: compiled, or recomputed in the backward pass to save memory.

Only training uses these forms. In eval mode a block runs as it was written: samples and evaluations come in many
lengths, and a compiled block would be compiled again for each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from llm_core.model.transformer import Backbone, Block


def blocks(model: nn.Module) -> list[nn.Module]:
    """The Transformer blocks of a model, in order."""
    return [module for module in model.modules() if isinstance(module, Block)]


def backbones(model: nn.Module) -> list[nn.Module]:
    """The parts of a model that hold its blocks: embedding, blocks, final norm."""
    return [module for module in model.modules() if isinstance(module, Backbone)]


@contextmanager
def training_form(
    model: nn.Module, *, recompute: bool = False, compiled: bool = False, by_block: bool = False
) -> Iterator[None]:
    """Inside, blocks in training mode are compiled, or keep only their input and compute the rest again (Chen et al.
    2016): about a third more time for a fraction of the memory. Numbers stay the same but for a compiler's rounding.
    """
    changed = []
    if recompute:
        from torch.utils.checkpoint import checkpoint

        for block in blocks(model):
            _replace(block, partial(checkpoint, block.forward, use_reentrant=False))
            changed.append(block)
    if compiled:
        for part in blocks(model) if by_block else backbones(model):
            _replace(part, torch.compile(part.forward, dynamic=False))
            changed.append(part)
    try:
        yield
    finally:
        for part in changed:
            vars(part).pop("forward", None)


def _replace(part: nn.Module, fast: Callable[..., Any]) -> None:
    plain = part.forward

    def forward(*arguments: Any, **named: Any) -> Any:
        return (fast if part.training else plain)(*arguments, **named)

    part.forward = forward  # type: ignore[method-assign]

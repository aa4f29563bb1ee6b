"""Cross-entropy that never holds all logits, and log-probabilities of given tokens.

The logits of a language model are its largest tensor: batch x length x vocabulary. The loss here goes through them
in chunks of rows, turns each chunk in place from logits into the gradient (softmax minus one-hot), and adds it to the
gradients of the hidden vectors and of the head at once, so backward has nothing left to do but scale.

On a CPU a chunk is cut once more, into tiles of the vocabulary. A product that writes rows of 50,257 numbers runs at
half the speed of one that writes rows of 1,024 (each row of the former lies on another page of memory), and a tile of
the head stays in the cache while a chunk passes. Each tile takes its own softmax; the tiles are brought onto one scale
when the log-sum-exp of the whole row is known.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llm_core.model.costs import LOGITS_BYTES
from llm_core.model.transformer import Transformer

TILE = 1024
"""Tokens of the vocabulary that a CPU looks at in one product."""


@dataclass(frozen=True, slots=True)
class _Options:
    rows: int
    columns: int
    softcap: float
    z_loss: float


@dataclass(slots=True)
class _Tile:
    """Part of a chunk's logits, as probabilities within the tile, and the targets that lie in it."""

    first: int
    probability_MC: Tensor
    slope_of_cap_MC: Tensor | None
    places: Tensor
    """Where the targets stand in the flattened tile."""


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, options: _Options) -> Tensor:
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        grad_hidden = torch.zeros_like(hidden_ND) if wants_hidden else None
        grad_weight = torch.zeros_like(weight_VD, dtype=torch.float32) if wants_weight else None
        weight = weight_VD.detach().to(hidden_ND.dtype)
        total = torch.zeros((), dtype=torch.float32, device=hidden_ND.device)
        buffer = torch.empty(
            min(options.rows, len(hidden_ND)) * len(weight), dtype=hidden_ND.dtype, device=hidden_ND.device
        )
        for start in range(0, len(hidden_ND), options.rows):
            cut = slice(start, start + options.rows)
            hidden_MD, targets_M = hidden_ND[cut].detach(), targets_N[cut]
            tiles, sums_KM, wanted_M = _tiles(hidden_MD, weight, targets_M, buffer, options)
            sum_M = sums_KM.logsumexp(0) if len(tiles) > 1 else sums_KM[0]
            total += (sum_M - wanted_M).sum() + options.z_loss * sum_M.square().sum()
            if grad_hidden is None and grad_weight is None:
                continue
            scale_KM = (sums_KM - sum_M).exp() * (1 + 2 * options.z_loss * sum_M)
            for tile, scale_M in zip(tiles, scale_KM, strict=True):
                slope_MC = _slope(tile, None if len(tiles) == 1 and not options.z_loss else scale_M, hidden_MD.dtype)
                part = slice(tile.first, tile.first + slope_MC.shape[1])
                if grad_hidden is not None:
                    grad_hidden[cut].addmm_(slope_MC, weight[part])
                if grad_weight is not None:
                    _accumulate(grad_weight[part], slope_MC, hidden_MD)
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.weight_dtype = weight_VD.dtype
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        scale = grads[0]
        hidden = None if grad_hidden is None else grad_hidden.mul_(scale.to(grad_hidden.dtype))
        weight = None if grad_weight is None else grad_weight.mul_(scale).to(ctx.weight_dtype)
        return hidden, weight, None, None


def _tiles(
    hidden_MD: Tensor, weight_VD: Tensor, targets_M: Tensor, buffer: Tensor, options: _Options
) -> tuple[list[_Tile], Tensor, Tensor]:
    """The chunk's tiles, the log-sum-exp of each tile's logits [K, M], and the logits of the targets [M]."""
    count = len(hidden_MD)
    tiles, sums = [], []
    wanted_M = torch.zeros(count, dtype=torch.float32, device=hidden_MD.device)
    for first in range(0, len(weight_VD), options.columns):
        part_CD = weight_VD[first : first + options.columns]
        out = buffer[first * count : (first + len(part_CD)) * count].view(count, len(part_CD))
        logits_MC = torch.mm(hidden_MD, part_CD.t(), out=out)
        if logits_MC.dtype != torch.float32:
            logits_MC = logits_MC.float()
        slope_of_cap = None
        if options.softcap:
            share = logits_MC.div_(options.softcap).tanh_()
            slope_of_cap = 1 - share.square()
            logits_MC = share.mul_(options.softcap)
        rows, columns = _targets_within(targets_M, first, len(part_CD), whole=len(part_CD) == len(weight_VD))
        places = rows * len(part_CD) + columns
        wanted_M.index_copy_(0, rows, logits_MC.view(-1).index_select(0, places))
        highest_M = logits_MC.amax(dim=1)
        probability = torch.softmax(logits_MC, dim=1, out=logits_MC)
        sums.append(highest_M - probability.amax(dim=1).log())
        tiles.append(_Tile(first, probability, slope_of_cap, places))
    return tiles, torch.stack(sums), wanted_M


def _targets_within(targets_M: Tensor, first: int, width: int, whole: bool) -> tuple[Tensor, Tensor]:
    """Rows whose target lies in the tile, and their columns. The whole vocabulary needs no look at the values."""
    if whole:
        return torch.arange(len(targets_M), device=targets_M.device), targets_M
    rows = ((targets_M >= first) & (targets_M < first + width)).nonzero()[:, 0]
    return rows, targets_M[rows] - first


def _slope(tile: _Tile, scale_M: Tensor | None, kind: torch.dtype) -> Tensor:
    """Gradient with respect to the tile's logits, before the cap where there is one, in place."""
    slope = tile.probability_MC
    if scale_M is not None:
        slope.mul_(scale_M[:, None])
    slope.view(-1).index_add_(0, tile.places, slope.new_full(tile.places.shape, -1.0))
    if tile.slope_of_cap_MC is not None:
        slope.mul_(tile.slope_of_cap_MC)
    return slope.to(kind)


def _accumulate(grad_weight: Tensor, slope: Tensor, hidden: Tensor) -> None:
    if slope.dtype == torch.float32:
        grad_weight.addmm_(slope.t(), hidden)
    else:
        grad_weight.add_(slope.t() @ hidden)


def cross_entropy(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    targets_N: Tensor,
    chunk: int | None = None,
    *,
    softcap: float = 0.0,
    z_loss: float = 0.0,
) -> Tensor:
    """Sum over N of -log softmax(logits)[target], in nats; equal to `F.cross_entropy(logits, reduction="sum")`.

    The logits are hidden @ weight.T, capped as `ModelConfig.softcap` says. `z_loss` adds that times the square of each
    row's log-sum-exp, which keeps logits from drifting (PaLM, section 5: 1e-4). `chunk`: rows at a time (None: about
    48 MiB of logits). Give only the rows that count: select before calling. Backward may be called once.
    """
    vocabulary = len(weight_VD)
    rows = chunk or max(1, LOGITS_BYTES // (4 * vocabulary))
    columns = TILE if hidden_ND.device.type == "cpu" and vocabulary > 2 * TILE else vocabulary
    options = _Options(rows, columns, softcap, z_loss)
    total: Tensor = _ChunkedCrossEntropy.apply(hidden_ND, weight_VD, targets_N, options)  # type: ignore[no-untyped-call]
    return total


def sequence_logprobs(model: Transformer, tokens_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Log-probability of each token given the ones before it [B, T]; 0 where `mask_BT` is 0, and at position 0.

    `mask_BT` names the tokens to score (the answer); sequences are padded on the right. Differentiable. Only the
    scored positions pass through the output head.
    """
    hidden_BTD = model.hidden(tokens_BT)
    wanted_BT = mask_BT[:, 1:].bool()
    logits = model.logits(hidden_BTD[:, :-1][wanted_BT]).float()
    targets = tokens_BT[:, 1:][wanted_BT]
    scored = logits.gather(1, targets[:, None])[:, 0] - logits.logsumexp(dim=1)
    out_BT = torch.zeros(tokens_BT.shape, dtype=scored.dtype, device=tokens_BT.device)
    where_BT = torch.nn.functional.pad(wanted_BT, (1, 0))
    return out_BT.masked_scatter(where_BT, scored)

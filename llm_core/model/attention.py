"""Causal attention with grouped heads, rotary positions and normed queries and keys.

Notable:
- Tensors carry their shape as a suffix, as in transformer.py.
- Attention over a whole sequence on a CPU goes block by block and skips the masked half.
- Sampling reads the same weights with a cache of keys and values: decoder.py.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm_core.model.config import ModelConfig
from llm_core.model.costs import GATE_WIDTH
from llm_core.model.operations import rms_norm, rotate

BLOCK = 128
"""Query positions of one block of attention on a CPU: what comes after them is not computed."""
SHARPER = 1.44
"""What speedrun multiplies the usual 1 / sqrt(E) with: normed queries and keys cannot grow by themselves (nanochat)."""


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps), times a weight unless the architecture has none."""

    weight: Tensor | None

    def __init__(self, width: int, eps: float, weighted: bool = True) -> None:
        super().__init__()
        self.eps = eps
        if weighted:
            self.weight = nn.Parameter(torch.ones(width))
        else:
            self.register_parameter("weight", None)

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


def rotary_tables(context: int, head_size: int, base: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines [context, head_size / 2] of the rotary angles (Su et al. 2021)."""
    rate_E2 = 1.0 / base ** (torch.arange(0, head_size, 2).float() / head_size)
    angle = torch.arange(context).float()[:, None] * rate_E2
    return angle.cos(), angle.sin()


def sinusoidal_table(context: int, width: int) -> Tensor:
    """PE[p, 2i] = sin(p / 10000^(2i/width)), PE[p, 2i+1] = cos of the same (Vaswani et al. 2017): [context, width]."""
    angle = torch.arange(context).float()[:, None] * torch.exp(
        torch.arange(0, width, 2).float() * (-math.log(10000.0) / width)
    )
    return torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(1)


def attend(
    query_BHTE: Tensor,
    key_BKSE: Tensor,
    value_BKSE: Tensor,
    mask: Tensor | None,
    dropout: float,
    scale: float | None = None,
) -> Tensor:
    """Scaled dot-product attention; `mask` [B, 1, T, T] is true where a query may look, None means causal.

    A mask may only take away from causal attention. `scale` multiplies the scores (None: 1 / sqrt(E)).
    """
    grouped = key_BKSE.shape[1] != query_BHTE.shape[1]
    length = query_BHTE.shape[2]
    if query_BHTE.device.type != "cpu" or length <= BLOCK:
        return F.scaled_dot_product_attention(
            query_BHTE, key_BKSE, value_BKSE, attn_mask=mask, is_causal=mask is None, dropout_p=dropout, scale=scale,
            enable_gqa=grouped,
        )  # fmt: skip
    place = torch.arange(length)
    blocks = []
    for start in range(0, length, BLOCK):
        stop = min(start + BLOCK, length)
        part = F.scaled_dot_product_attention(
            query_BHTE[:, :, start:stop],
            key_BKSE[:, :, :stop],
            value_BKSE[:, :, :stop],
            attn_mask=place[:stop] <= place[start:stop, None] if mask is None else mask[..., start:stop, :stop],
            dropout_p=dropout,
            scale=scale,
            enable_gqa=grouped,
        )
        blocks.append(part)
    return torch.cat(blocks, dim=2)


class Attention(nn.Module):
    """Multi-head causal attention, with grouped key/value heads, rotary positions and QK-norm where configured."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.config = config
        width, size, bias = config.width, config.head_size, bool(config.attention_bias)
        self.q_proj = nn.Linear(width, config.heads * size, bias=bias)
        self.k_proj = nn.Linear(width, config.kv_heads * size, bias=bias)
        self.v_proj = nn.Linear(width, config.kv_heads * size, bias=bias)
        self.o_proj = nn.Linear(config.heads * size, width, bias=bias)
        speedrun = config.architecture == "speedrun"
        self.normed = speedrun or config.architecture == "qwen3"
        if self.normed:
            self.q_norm = RMSNorm(size, config.norm_eps, weighted=not speedrun)
            self.k_norm = RMSNorm(size, config.norm_eps, weighted=not speedrun)
        self.scale = SHARPER * size**-0.5 if speedrun else None
        if config.has_value_embedding(layer):
            self.value_gate = nn.Linear(min(GATE_WIDTH, width), config.kv_heads, bias=False)

    def forward(
        self,
        x_BTD: Tensor,
        turn: tuple[Tensor, Tensor] | None,
        mask: Tensor | None,
        embedded_values_BTV: Tensor | None = None,
    ) -> Tensor:
        """`embedded_values_BTV`: the layer's value embeddings of the tokens [B, T, K * E], where it has some."""
        batch, length, _ = x_BTD.shape
        query = self.q_proj(x_BTD).view(batch, length, self.config.heads, -1)
        key = self.k_proj(x_BTD).view(batch, length, self.config.kv_heads, -1)
        value = self.v_proj(x_BTD).view(batch, length, self.config.kv_heads, -1)
        if embedded_values_BTV is not None:
            gate_BTK1 = 2 * torch.sigmoid(self.value_gate(x_BTD[..., : self.value_gate.in_features]))[..., None]
            value = value + gate_BTK1 * embedded_values_BTV.view(batch, length, self.config.kv_heads, -1)
        value_BKTE = value.transpose(1, 2)
        if self.normed:
            query, key = self.q_norm(query), self.k_norm(key)
        query_BHTE, key_BKTE = query.transpose(1, 2), key.transpose(1, 2)
        if turn is not None:
            query_BHTE, key_BKTE = rotate(query_BHTE, *turn), rotate(key_BKTE, *turn)
        dropout = self.config.dropout if self.training else 0.0
        mixed_BHTE = attend(query_BHTE, key_BKTE, value_BKTE, mask, dropout, self.scale)
        out: Tensor = self.o_proj(mixed_BHTE.transpose(1, 2).reshape(batch, length, -1))
        return out

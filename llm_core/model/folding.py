"""A model's weights joined for sampling: fewer matrices, and no operation that can be done once instead of every token.

Notable:
- A norm's weight and bias stand in the matrix that reads it; query, key and value are one matrix, so are gate and up.
- The attention's scale stands in the queries, low-rank additions are merged.
- Rotary pairs lie side by side, so that turning them is one complex product; queries and keys are permuted alike, which
  leaves their products as they were.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from llm_core.model.attention import Attention, RMSNorm
from llm_core.model.config import ModelConfig
from llm_core.model.lora import LoraLinear
from llm_core.model.transformer import Transformer


@dataclass(slots=True)
class Layer:
    """One block: matrices [in, out] and their biases."""

    attention_in: Tensor
    """Query, key and value heads [D, (H + 2 K) * E]."""
    attention_in_bias: Tensor | None
    head_scale: Tensor | None
    """Weights of the norms on query and key heads [H + K, E], where the architecture has them."""
    attention_out: Tensor
    attention_out_bias: Tensor | None
    forward_in: Tensor
    forward_in_bias: Tensor | None
    forward_out: Tensor
    forward_out_bias: Tensor | None
    value_gate: Tensor | None
    value_table: Tensor | None


@dataclass(slots=True)
class Folded:
    """A whole model."""

    embedding: Tensor
    """[V, D], the model's own."""
    places: Tensor | None
    """What is added to the embedding at each position [context, D], without rotary positions."""
    turns: Tensor | None
    """Rotary angles as complex numbers [context, 1, E / 2]."""
    mixes: list[tuple[float, float]]
    """speedrun: what each layer multiplies its input and the embedding with."""
    layers: list[Layer]
    head: Tensor
    """[D, V], with the final norm's weight."""
    head_bias: Tensor | None


@torch.no_grad()
def fold(model: Transformer, dtype: torch.dtype | None = None) -> Folded:
    """The weights as they are now (with its additions unless they are off), in `dtype` (None: the model's own)."""
    config = model.config
    body: Any = model.model
    embedding = body.embed_tokens.weight.detach()
    dtype = dtype or embedding.dtype
    places = turns = None
    if config.rotary:
        turns = torch.complex(body.cosine.float(), body.sine.float())[:, None]
    else:
        places = (body.embed_positions.weight.detach() if config.architecture == "gpt2" else body.positions).to(dtype)
    mixes: list[tuple[float, float]] = []
    if config.architecture == "speedrun":
        mixes = list(zip(body.residual_scales.tolist(), body.embedding_scales.tolist(), strict=True))
    head, head_bias = _cast(*_with_norm(body.norm, model.head_weight.detach(), None), dtype=dtype)
    layers = [_layer(model, index, dtype) for index in range(config.layers)]
    return Folded(embedding, places, turns, mixes, layers, head, head_bias)


def _layer(model: Transformer, index: int, dtype: torch.dtype) -> Layer:
    config = model.config
    body: Any = model.model
    block = body.layers[index]
    attention, forward = block.self_attn, block.mlp
    entering, entering_bias = _attention_in(attention, config)
    enters = [forward.gate_proj, forward.up_proj] if config.gated else [forward.up_proj]
    extra = config.has_value_embedding(index)
    return Layer(
        *_cast(*_with_norm(block.input_layernorm, entering, entering_bias), dtype=dtype),
        _head_scale(attention, config, dtype),
        *_cast(*_joined([attention.o_proj]), dtype=dtype),
        *_cast(*_with_norm(block.post_attention_layernorm, *_joined(enters)), dtype=dtype),
        *_cast(*_joined([forward.down_proj]), dtype=dtype),
        (attention.value_gate.weight.detach() * config.width**0.5).to(dtype) if extra else None,
        body.embed_values[str(index)].weight.detach().to(dtype) if extra else None,
    )


def _attention_in(attention: Attention, config: ModelConfig) -> tuple[Tensor, Tensor | None]:
    """The matrix of query, key and value heads, and its bias; queries scaled, rotary pairs side by side."""
    matrix, bias = _joined([attention.q_proj, attention.k_proj, attention.v_proj])
    parts = [matrix] if bias is None else [matrix, bias]
    for number, part in enumerate(parts):
        by_head = part.view(-1, config.head_size, *part.shape[1:]).clone()
        turning = config.heads + config.kv_heads
        by_head[:turning] = _side_by_side(by_head[:turning], 1, config)
        if not attention.normed:
            by_head[: config.heads] *= _scale(attention, config)
        parts[number] = by_head.flatten(0, 1)
    return parts[0], parts[1] if bias is not None else None


def _head_scale(attention: Attention, config: ModelConfig, dtype: torch.dtype) -> Tensor | None:
    if not attention.normed:
        return None
    device = attention.q_proj.weight.device
    rows = []
    for norm, heads, factor in (
        (attention.q_norm, config.heads, _scale(attention, config)),
        (attention.k_norm, config.kv_heads, 1.0),
    ):
        weight = torch.ones(config.head_size, device=device) if norm.weight is None else norm.weight.detach()
        factor *= config.head_size**0.5  # the decoder's norm leaves it out
        rows.append((factor * _side_by_side(weight, 0, config)).expand(heads, -1))
    return torch.cat(rows).to(dtype)


def _scale(attention: Attention, config: ModelConfig) -> float:
    return float(config.head_size**-0.5 if attention.scale is None else attention.scale)


def _side_by_side(x: Tensor, dimension: int, config: ModelConfig) -> Tensor:
    """Reorder a head's entries so that the two of a rotary pair, half a head apart, are neighbours."""
    if not config.rotary:
        return x
    half = torch.arange(config.head_size // 2, device=x.device)
    return x.index_select(dimension, torch.stack((half, half + config.head_size // 2), dim=1).flatten())


def _joined(linears: Sequence[nn.Linear | LoraLinear]) -> tuple[Tensor, Tensor | None]:
    """Layers that read the same input as one: their outputs follow each other."""
    matrix = torch.cat([x.effective() if isinstance(x, LoraLinear) else x.weight.detach() for x in linears])
    biases = [x.bias.detach() for x in linears if x.bias is not None]
    return matrix, torch.cat(biases) if biases else None


def _with_norm(norm: nn.Module, matrix: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """`matrix` and `bias` reading what `norm` gives before its own weight and bias."""
    weight, shift = norm.weight, getattr(norm, "bias", None)
    if isinstance(shift, Tensor):
        shifted = matrix @ shift.detach()
        bias = shifted if bias is None else bias + shifted
    if isinstance(norm, RMSNorm):
        matrix = matrix * matrix.shape[1] ** 0.5  # the decoder's norm leaves it out
    return (matrix * weight.detach() if isinstance(weight, Tensor) else matrix), bias


def _cast(matrix: Tensor, bias: Tensor | None, *, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """`matrix` [out, in] as it is multiplied with, a view [in, out]."""
    return matrix.to(dtype).t(), None if bias is None else bias.to(dtype)

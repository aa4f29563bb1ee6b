"""One Transformer for every architecture of `ModelConfig`.

Notable:
- Modules are named as in Hugging Face's Llama and Qwen3, so a saved state opens there unchanged.
- Tensors carry their shape as a suffix: B batch, T query positions, S key positions, H heads, K key/value heads,
  E head size, D width, V vocabulary.
- Attention over a whole sequence on a CPU goes block by block and skips the masked half.
- With a key/value cache, a token's slot is its position, so ragged prompts need no left padding.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm_core.contract import BadInput
from llm_core.model.config import ModelConfig

BLOCK = 128
"""Query positions of one block of causal attention on a CPU."""


class Cache:
    """Keys and values of earlier positions, for each layer [B, K, S, E]; slot s holds position s."""

    def __init__(self, config: ModelConfig, batch: int, slots: int, device: torch.device | str = "cpu") -> None:
        shape = (batch, config.kv_heads, slots, config.head_size)
        self.keys = [torch.zeros(shape, device=device) for _ in range(config.layers)]
        self.values = [torch.zeros(shape, device=device) for _ in range(config.layers)]

    @property
    def slots(self) -> int:
        """Positions that fit."""
        return self.keys[0].shape[2]

    def write(self, layer: int, key_BKTE: Tensor, value_BKTE: Tensor, positions_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Store new keys and values at their positions; returns all slots of the layer up to the highest position."""
        rows_B1 = torch.arange(len(positions_BT), device=positions_BT.device)[:, None]
        self.keys[layer][rows_B1, :, positions_BT] = key_BKTE.transpose(1, 2)
        self.values[layer][rows_B1, :, positions_BT] = value_BKTE.transpose(1, 2)
        used = int(positions_BT.max()) + 1
        return self.keys[layer][:, :, :used], self.values[layer][:, :, :used]

    def select(self, rows: Tensor) -> None:
        """Keep these rows, in this order; a row may be repeated (several samples of one prompt)."""
        self.keys = [key[rows] for key in self.keys]
        self.values = [value[rows] for value in self.values]


def rotary_tables(context: int, head_size: int, base: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines [context, head_size / 2] of the rotary angles (Su et al. 2021)."""
    rate_E2 = 1.0 / base ** (torch.arange(0, head_size, 2).float() / head_size)
    angle = torch.arange(context).float()[:, None] * rate_E2
    return angle.cos(), angle.sin()


def rotate(x_BHTE: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Turn each pair (e, e + E/2) of a head by its position's angle."""
    a, b = x_BHTE.chunk(2, dim=-1)
    return torch.cat((a * cosine - b * sine, b * cosine + a * sine), dim=-1)


def sinusoidal_table(context: int, width: int) -> Tensor:
    """PE[p, 2i] = sin(p / 10000^(2i/width)), PE[p, 2i+1] = cos of the same (Vaswani et al. 2017): [context, width]."""
    angle = torch.arange(context).float()[:, None] * torch.exp(
        torch.arange(0, width, 2).float() * (-math.log(10000.0) / width)
    )
    return torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(1)


def attend(query_BHTE: Tensor, key_BKSE: Tensor, value_BKSE: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    """Scaled dot-product attention; `mask` [B, 1, T, S] is true where a query may look, None means causal."""
    grouped = key_BKSE.shape[1] != query_BHTE.shape[1]
    if mask is not None:
        return F.scaled_dot_product_attention(
            query_BHTE, key_BKSE, value_BKSE, attn_mask=mask, dropout_p=dropout, enable_gqa=grouped
        )
    length = query_BHTE.shape[2]
    if query_BHTE.device.type != "cpu" or length <= BLOCK:
        return F.scaled_dot_product_attention(
            query_BHTE, key_BKSE, value_BKSE, is_causal=True, dropout_p=dropout, enable_gqa=grouped
        )
    blocks = []
    for start in range(0, length, BLOCK):
        stop = min(start + BLOCK, length)
        row_T1 = torch.arange(start, stop)[:, None]
        part = F.scaled_dot_product_attention(
            query_BHTE[:, :, start:stop],
            key_BKSE[:, :, :stop],
            value_BKSE[:, :, :stop],
            attn_mask=torch.arange(stop) <= row_T1,
            dropout_p=dropout,
            enable_gqa=grouped,
        )
        blocks.append(part)
    return torch.cat(blocks, dim=2)


class Attention(nn.Module):
    """Multi-head causal attention, with grouped key/value heads, rotary positions and QK-norm where configured."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.config, self.layer = config, layer
        width, size, bias = config.width, config.head_size, bool(config.attention_bias)
        self.q_proj = nn.Linear(width, config.heads * size, bias=bias)
        self.k_proj = nn.Linear(width, config.kv_heads * size, bias=bias)
        self.v_proj = nn.Linear(width, config.kv_heads * size, bias=bias)
        self.o_proj = nn.Linear(config.heads * size, width, bias=bias)
        self.normed = config.architecture == "qwen3"
        if self.normed:
            self.q_norm = nn.RMSNorm(size, eps=config.norm_eps)
            self.k_norm = nn.RMSNorm(size, eps=config.norm_eps)

    def forward(
        self,
        x_BTD: Tensor,
        turn: tuple[Tensor, Tensor] | None,
        mask: Tensor | None,
        cache: Cache | None,
        positions_BT: Tensor | None,
    ) -> Tensor:
        batch, length, _ = x_BTD.shape
        query = self.q_proj(x_BTD).view(batch, length, self.config.heads, -1)
        key = self.k_proj(x_BTD).view(batch, length, self.config.kv_heads, -1)
        value_BKTE = self.v_proj(x_BTD).view(batch, length, self.config.kv_heads, -1).transpose(1, 2)
        if self.normed:
            query, key = self.q_norm(query), self.k_norm(key)
        query_BHTE, key_BKTE = query.transpose(1, 2), key.transpose(1, 2)
        if turn is not None:
            query_BHTE, key_BKTE = rotate(query_BHTE, *turn), rotate(key_BKTE, *turn)
        if cache is not None and positions_BT is not None:
            key_BKTE, value_BKTE = cache.write(self.layer, key_BKTE, value_BKTE, positions_BT)
        dropout = self.config.dropout if self.training else 0.0
        mixed_BHTE = attend(query_BHTE, key_BKTE, value_BKTE, mask, dropout)
        out: Tensor = self.o_proj(mixed_BHTE.transpose(1, 2).reshape(batch, length, -1))
        return out


class GatedFeedForward(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x)) (Shazeer 2020)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.width, config.hidden, bias=False)
        self.up_proj = nn.Linear(config.width, config.hidden, bias=False)
        self.down_proj = nn.Linear(config.hidden, config.width, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x_BTD)) * self.up_proj(x_BTD))
        return out


class FeedForward(nn.Module):
    """down(gelu(up(x))), with biases; GELU is exact in seed and the tanh form in gpt2."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.up_proj = nn.Linear(config.width, config.hidden)
        self.down_proj = nn.Linear(config.hidden, config.width)
        self.form = "none" if config.architecture == "seed" else "tanh"

    def forward(self, x_BTD: Tensor) -> Tensor:
        out: Tensor = self.down_proj(F.gelu(self.up_proj(x_BTD), approximate=self.form))
        return out


def norm(config: ModelConfig) -> nn.Module:
    """RMSNorm in the rotary architectures, else LayerNorm."""
    kind = nn.RMSNorm if config.rotary else nn.LayerNorm
    return kind(config.width, eps=config.norm_eps)


class Block(nn.Module):
    """Pre-norm residual block: x + attention(norm(x)), then x + feed_forward(norm(x))."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = norm(config)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = norm(config)
        self.mlp: nn.Module = GatedFeedForward(config) if config.rotary else FeedForward(config)
        self.dropout = config.dropout

    def forward(
        self,
        x_BTD: Tensor,
        turn: tuple[Tensor, Tensor] | None,
        mask: Tensor | None,
        cache: Cache | None,
        positions_BT: Tensor | None,
    ) -> Tensor:
        x_BTD = x_BTD + self._drop(self.self_attn(self.input_layernorm(x_BTD), turn, mask, cache, positions_BT))
        return x_BTD + self._drop(self.mlp(self.post_attention_layernorm(x_BTD)))

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training) if self.dropout else x


class Backbone(nn.Module):
    """Embedding, blocks and final norm: token ids to the width-D vectors that heads read."""

    positions: Tensor
    cosine: Tensor
    sine: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.width)
        if config.architecture == "gpt2":
            self.embed_positions = nn.Embedding(config.context, config.width)
        elif config.architecture == "seed":
            self.register_buffer("positions", sinusoidal_table(config.context, config.width), persistent=False)
        else:
            cosine, sine = rotary_tables(config.context, config.head_size, config.rope_base)
            self.register_buffer("cosine", cosine, persistent=False)
            self.register_buffer("sine", sine, persistent=False)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.norm = norm(config)

    def forward(
        self,
        tokens_BT: Tensor,
        cache: Cache | None = None,
        positions_BT: Tensor | None = None,
        attention_mask_BT: Tensor | None = None,
    ) -> Tensor:
        length = tokens_BT.shape[1]
        if cache is not None and attention_mask_BT is not None:
            raise ValueError("a cache takes no attention mask: pad on the right, slots are positions")
        if positions_BT is None and (cache is not None or attention_mask_BT is not None):
            positions_BT = _positions(tokens_BT, attention_mask_BT)
        highest = length if positions_BT is None else int(positions_BT.max()) + 1
        if highest > self.config.context:
            raise BadInput(f"model.context: a sequence of {highest} tokens exceeds the context {self.config.context}")
        mask = _mask(length, positions_BT if cache is not None else None, highest, attention_mask_BT)
        x_BTD = self._embed(tokens_BT, positions_BT)
        turn = self._turn(length, positions_BT)
        for block in self.layers:
            x_BTD = block(x_BTD, turn, mask, cache, positions_BT)
        out: Tensor = self.norm(x_BTD)
        return out

    def _embed(self, tokens_BT: Tensor, positions_BT: Tensor | None) -> Tensor:
        x_BTD: Tensor = self.embed_tokens(tokens_BT)
        if self.config.rotary:
            return x_BTD
        table = self.embed_positions.weight if self.config.architecture == "gpt2" else self.positions
        x_BTD = x_BTD + (table[: tokens_BT.shape[1]] if positions_BT is None else table[positions_BT])
        return F.dropout(x_BTD, self.config.dropout, self.training and self.config.architecture == "gpt2")

    def _turn(self, length: int, positions_BT: Tensor | None) -> tuple[Tensor, Tensor] | None:
        if not self.config.rotary:
            return None
        if positions_BT is None:
            return self.cosine[:length], self.sine[:length]
        return self.cosine[positions_BT][:, None], self.sine[positions_BT][:, None]


def _positions(tokens_BT: Tensor, attention_mask_BT: Tensor | None) -> Tensor:
    if attention_mask_BT is None:
        return torch.arange(tokens_BT.shape[1], device=tokens_BT.device).expand_as(tokens_BT)
    return (attention_mask_BT.long().cumsum(1) - 1).clamp_min(0)


def _mask(length: int, positions_BT: Tensor | None, slots: int, attention_mask_BT: Tensor | None) -> Tensor | None:
    """Where queries may look [B, 1, T, S], or None for plain causal attention."""
    if positions_BT is not None:
        return (torch.arange(slots, device=positions_BT.device) <= positions_BT[:, :, None])[:, None]
    if attention_mask_BT is None:
        return None
    place = torch.arange(length, device=attention_mask_BT.device)
    causal_TS = place <= place[:, None]
    # a padded query still sees itself: a row without any key would be NaN
    return (causal_TS & (attention_mask_BT.bool()[:, None, :] | (place == place[:, None])))[:, None]


class Transformer(nn.Module):
    """A decoder-only language model. Weights are drawn from torch's current random state."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Backbone(config)
        if not config.tied:
            self.lm_head = nn.Linear(config.width, config.vocab_size, bias=False)
        self.initialise()

    @torch.no_grad()
    def initialise(self) -> None:
        """Draw fresh weights. Matrices N(0, initial_std), the embedding N(0, embedding_std), biases 0, norms 1.

        gpt2 divides the residual outputs by sqrt(2 layers); the rotary architectures start them at zero, so that
        every block is the identity at first (as modded-nanogpt and nanochat do).
        """
        for name, parameter in self.named_parameters():
            residual = name.endswith(("o_proj.weight", "down_proj.weight"))
            if parameter.dim() < 2:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
            elif "embed_tokens" in name:
                parameter.normal_(0.0, self.config.embedding_std)
            elif residual and self.config.rotary:
                parameter.zero_()
            else:
                scale = (2 * self.config.layers) ** -0.5 if residual and self.config.architecture == "gpt2" else 1.0
                parameter.normal_(0.0, self.config.initial_std * scale)

    @property
    def head_weight(self) -> Tensor:
        """Weight of the output head [V, D]; the embedding's where the head is tied."""
        return self.model.embed_tokens.weight if self.config.tied else self.lm_head.weight

    def hidden(
        self,
        tokens_BT: Tensor,
        *,
        cache: Cache | None = None,
        positions: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """Vectors after the final norm [B, T, D], which the output head (or a reward head) reads.

        `positions` [B, T] are needed with a filled cache. `attention_mask` [B, T] is 0 on padding; right padding
        needs none. Raises `BadInput` if a position exceeds the context.
        """
        out: Tensor = self.model(tokens_BT, cache, positions, attention_mask)
        return out

    def forward(
        self,
        tokens_BT: Tensor,
        *,
        cache: Cache | None = None,
        positions: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """Logits of the next token [B, T, V]; the arguments are those of `hidden`."""
        return F.linear(
            self.hidden(tokens_BT, cache=cache, positions=positions, attention_mask=attention_mask), self.head_weight
        )

    def blocks_matrices(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The hidden matrices, which Muon may turn: two-dimensional weights inside the blocks."""
        for name, parameter in self.model.layers.named_parameters(prefix="model.layers"):
            if parameter.dim() == 2:
                yield name, parameter

"""One Transformer for every architecture of `ModelConfig`.

Notable:
- Modules are named as in Hugging Face's Llama and Qwen3, so a saved state opens there unchanged.
- Tensors carry their shape as a suffix: B batch, T query positions, S key positions, H heads, K key/value heads,
  E head size, D width, V vocabulary.
- What the speedrun architecture adds (value embeddings, a mix of each layer's input with the embedding) stands beside
  the plain path, which it leaves as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llm_core.contract import BadInput
from llm_core.model.attention import Attention, RMSNorm, rotary_tables, sinusoidal_table
from llm_core.model.config import ModelConfig


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
    """down(gelu(up(x))) with biases, GELU exact in seed and of the tanh form in gpt2; speedrun: down(relu(up(x))^2)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        bias = config.architecture != "speedrun"
        self.up_proj = nn.Linear(config.width, config.hidden, bias=bias)
        self.down_proj = nn.Linear(config.hidden, config.width, bias=bias)
        self.form = {"seed": "none", "gpt2": "tanh", "speedrun": "squared"}[config.architecture]

    def forward(self, x_BTD: Tensor) -> Tensor:
        inner_BTH = self.up_proj(x_BTD)
        inner_BTH = F.relu(inner_BTH).square() if self.form == "squared" else F.gelu(inner_BTH, approximate=self.form)
        out: Tensor = self.down_proj(inner_BTH)
        return out


def norm(config: ModelConfig) -> nn.Module:
    """RMSNorm in the rotary architectures (without a weight in speedrun), else LayerNorm."""
    if config.rotary:
        return RMSNorm(config.width, config.norm_eps, weighted=config.gated)
    return nn.LayerNorm(config.width, eps=config.norm_eps)


class Block(nn.Module):
    """Pre-norm residual block: x + attention(norm(x)), then x + feed_forward(norm(x))."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = norm(config)
        self.self_attn = Attention(config, layer)
        self.post_attention_layernorm = norm(config)
        self.mlp: nn.Module = GatedFeedForward(config) if config.gated else FeedForward(config)
        self.dropout = config.dropout

    def forward(
        self,
        x_BTD: Tensor,
        turn: tuple[Tensor, Tensor] | None,
        mask: Tensor | None,
        embedded_values_BTV: Tensor | None = None,
    ) -> Tensor:
        normed_BTD = self.input_layernorm(x_BTD)
        mixed_BTD = self.self_attn(normed_BTD, turn, mask, embedded_values_BTV)
        x_BTD = x_BTD + self._drop(mixed_BTD)
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
        if config.architecture == "speedrun":
            found = [layer for layer in range(config.layers) if config.has_value_embedding(layer)]
            width = config.kv_heads * config.head_size
            self.embed_values = nn.ModuleDict({str(layer): nn.Embedding(config.vocab_size, width) for layer in found})
            self.residual_scales = nn.Parameter(torch.ones(config.layers))
            self.embedding_scales = nn.Parameter(torch.zeros(config.layers))
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.norm = norm(config)

    def forward(
        self,
        tokens_BT: Tensor,
        positions_BT: Tensor | None = None,
        attention_mask_BT: Tensor | None = None,
        segments_BT: Tensor | None = None,
    ) -> Tensor:
        length = tokens_BT.shape[1]
        if positions_BT is None and attention_mask_BT is not None:
            positions_BT = (attention_mask_BT.long().cumsum(1) - 1).clamp_min(0)
        highest = length if positions_BT is None else int(positions_BT.max()) + 1
        if highest > self.config.context:
            raise BadInput(f"model.context: a sequence of {highest} tokens exceeds the context {self.config.context}")
        mask = _mask(length, attention_mask_BT)
        if segments_BT is not None:
            positions_BT, mask = _apart(segments_BT)
        x_BTD = self._embed(tokens_BT, positions_BT)
        turn = self._turn(length, positions_BT)
        if self.config.architecture == "speedrun":
            x_BTD = self._speedrun(tokens_BT, self.norm(x_BTD), turn, mask)
        else:
            for block in self.layers:
                x_BTD = block(x_BTD, turn, mask)
        out: Tensor = self.norm(x_BTD)
        return out

    def _speedrun(self, tokens_BT: Tensor, embedded_BTD: Tensor, *rest: Any) -> Tensor:
        """The blocks with what speedrun adds; `rest` are a block's further arguments. The norm has no weight."""
        x_BTD = embedded_BTD
        for layer, block in enumerate(self.layers):
            x_BTD = self.residual_scales[layer] * x_BTD + self.embedding_scales[layer] * embedded_BTD
            values = self.embed_values[str(layer)](tokens_BT) if self.config.has_value_embedding(layer) else None
            x_BTD = block(x_BTD, *rest, values)
        return x_BTD

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


def _mask(length: int, attention_mask_BT: Tensor | None) -> Tensor | None:
    """Where queries may look [B, 1, T, S], or None for plain causal attention."""
    if attention_mask_BT is None:
        return None
    if attention_mask_BT.dim() == 3:
        return attention_mask_BT[:, None]
    place = torch.arange(length, device=attention_mask_BT.device)
    causal_TS = place <= place[:, None]
    # a padded query still sees itself: a row without any key would be NaN
    return (causal_TS & (attention_mask_BT.bool()[:, None, :] | (place == place[:, None])))[:, None]


def _apart(segments_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Positions [B, T] that begin anew in each segment, and where queries may look [B, 1, T, T]: back, in their own."""
    place_T = torch.arange(segments_BT.shape[1], device=segments_BT.device)
    begins_BT = torch.ones_like(segments_BT, dtype=torch.bool)
    begins_BT[:, 1:] = segments_BT[:, 1:] != segments_BT[:, :-1]
    start_BT = torch.where(begins_BT, place_T, 0).cummax(dim=1).values
    same_BTS = segments_BT[:, :, None] == segments_BT[:, None, :]
    return place_T - start_BT, (same_BTS & (place_T <= place_T[:, None]))[:, None]


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
        every block is the identity at first (as modded-nanogpt and nanochat do). speedrun starts the head near zero.
        """
        for name, parameter in self.named_parameters():
            residual = name.endswith(("o_proj.weight", "down_proj.weight"))
            if name.endswith("embedding_scales"):
                parameter.fill_(0.1)
            elif name == "lm_head.weight" and self.config.architecture == "speedrun":
                parameter.normal_(0.0, 0.001)
            elif parameter.dim() < 2:
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
        positions: Tensor | None = None,
        attention_mask: Tensor | None = None,
        segments: Tensor | None = None,
    ) -> Tensor:
        """Vectors after the final norm [B, T, D], which the output head (or a reward head) reads.

        `attention_mask` [B, T] is 0 on padding; right padding needs none; a boolean [B, T, T], with `positions` [B, T],
        is true where a place may look. `segments` [B, T]: numbers of
        the texts that are packed into a row one after the other; each attends to itself alone and counts its positions
        from 0. Raises `BadInput` if a position exceeds the context.
        """
        out: Tensor = self.model(tokens_BT, positions, attention_mask, segments)
        return out

    def forward(
        self,
        tokens_BT: Tensor,
        *,
        positions: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> Tensor:
        """Logits of the next token [B, T, V]; the arguments are those of `hidden`."""
        return self.logits(self.hidden(tokens_BT, positions=positions, attention_mask=attention_mask))

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [..., V] of vectors [..., D] that `hidden` gave, capped where the config says so."""
        logits = F.linear(hidden, self.head_weight)
        cap = self.config.softcap
        return cap * torch.tanh(logits / cap) if cap else logits

    def blocks_matrices(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The hidden matrices, which Muon may turn: two-dimensional weights inside the blocks."""
        for name, parameter in self.model.layers.named_parameters(prefix="model.layers"):
            if parameter.dim() == 2:
                yield name, parameter

"""The model as sampling and scoring read it, without gradients; sampling with a cache of keys and values.

Notable:
- The same network as `Transformer`, in few operations: a small model spends its time on calling them. folding.py joins
  the weights for it; a test holds every architecture against the full forward pass.
- Prompts of unequal length are read as one run of tokens; only attention pads them, on the right.
- Tensors carry their shape as in transformer.py; N: tokens of a run, G: query heads of one key/value head, U: prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from llm_core.model.attention import attend
from llm_core.model.config import ModelConfig
from llm_core.model.folding import Layer, fold
from llm_core.model.transformer import Transformer

Mix = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""(layer, query [N, H, E], key [N, K, E], value [N, K, E]) -> [N, H * E]: attention over what each token may see."""


class Rows:
    """Keys and values of all rows and layers, [L, R, K, S, E]; slot s of a row holds position s."""

    def __init__(self, config: ModelConfig, device: torch.device, dtype: torch.dtype) -> None:
        self.keys = torch.zeros(config.layers, 0, config.kv_heads, 0, config.head_size, device=device, dtype=dtype)
        self.values = self.keys.clone()

    def reserve(self, rows: int, slots: int) -> None:
        """Make room for so many rows and positions; what is stored stays."""
        layers, old_rows, heads, old_slots, size = self.keys.shape
        if rows <= old_rows and slots <= old_slots:
            return
        shape = (layers, max(rows, old_rows), heads, max(slots, old_slots), size)
        for name in ("keys", "values"):
            grown = self.keys.new_zeros(shape)
            grown[:, :old_rows, :, :old_slots] = getattr(self, name)
            setattr(self, name, grown)

    def move(self, source: int, target: int, used: int) -> None:
        """Copy the first `used` positions of one row over another."""
        self.keys[:, target, :, :used] = self.keys[:, source, :, :used]
        self.values[:, target, :, :used] = self.values[:, source, :, :used]


@dataclass(frozen=True, slots=True)
class Places:
    """Where the N tokens of U texts, one after the other, stand in a rectangle that pads them on the right."""

    line_N: Tensor
    column_N: Tensor
    texts: int
    longest: int

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device) -> Places:
        """Of texts with these numbers of tokens."""
        line_N = np.repeat(np.arange(len(lengths)), lengths)
        column_N = np.concatenate([np.arange(length) for length in lengths])
        return cls(
            torch.from_numpy(line_N).to(device), torch.from_numpy(column_N).to(device), len(lengths), max(lengths)
        )

    def padded(self, flat_NHE: Tensor) -> Tensor:
        """[N, H, E] -> [U, H, T, E], with zeros in the padding."""
        out = flat_NHE.new_zeros(self.texts, self.longest, *flat_NHE.shape[1:])
        out[self.line_N, self.column_N] = flat_NHE
        return out.transpose(1, 2)

    def flat(self, padded_UHTE: Tensor) -> Tensor:
        """[U, H, T, E] -> [N, H * E]."""
        return padded_UHTE.transpose(1, 2)[self.line_N, self.column_N].flatten(1)


class Decoder:
    """A model's weights as they were when this was built, ready to read prompts and single tokens.

    `dtype`: of weights, cache and arithmetic; None: the model's own.
    """

    def __init__(self, model: Transformer, dtype: torch.dtype | None = None) -> None:
        self.config = config = model.config
        self.weights = fold(model, dtype)
        self.device, self.dtype = self.weights.embedding.device, self.weights.head.dtype
        self.turning = config.heads + config.kv_heads
        self.floor = self._floor(config.width)
        self.head_floor = self._floor(config.head_size)

    def _floor(self, width: int) -> Tensor:
        return torch.tensor((width * self.config.norm_eps) ** 0.5, device=self.device, dtype=self.dtype)

    def new_rows(self) -> Rows:
        """An empty cache."""
        return Rows(self.config, self.device, self.dtype)

    def read(self, prompts: Sequence[Sequence[int]], rows: Rows, targets: Tensor, sources: Tensor) -> Tensor:
        """Logits after each prompt [U, V]; row `targets[i]` of the cache gets prompt `sources[i]`."""
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        tokens_N = torch.tensor([token for prompt in prompts for token in prompt], device=self.device)
        places = Places.of(lengths.tolist(), self.device)

        def mix(layer: int, query_NHE: Tensor, key_NKE: Tensor, value_NKE: Tensor) -> Tensor:
            key_UKTE, value_UKTE = places.padded(key_NKE), places.padded(value_NKE)
            rows.keys[layer, targets, :, : places.longest] = key_UKTE[sources]
            rows.values[layer, targets, :, : places.longest] = value_UKTE[sources]
            return places.flat(attend(places.padded(query_NHE), key_UKTE, value_UKTE, None, 0.0, 1.0))

        hidden_ND = self._blocks(tokens_N, places.column_N, mix)
        return self.logits(hidden_ND[lengths.cumsum(0).to(self.device) - 1])

    def hidden(self, tokens_N: Tensor, positions_N: Tensor, places: Places, mask: Tensor | None) -> Tensor:
        """Vectors [N, D] of texts that lie one after the other, `places` says where; `logits` reads them.

        `mask` [U, 1, T, T] is true where a place of the U padded texts may look, None means causal.
        """

        def mix(_: int, query_NHE: Tensor, key_NKE: Tensor, value_NKE: Tensor) -> Tensor:
            query_UHTE, key_UKTE, value_UKTE = (
                places.padded(query_NHE),
                places.padded(key_NKE),
                places.padded(value_NKE),
            )
            return places.flat(attend(query_UHTE, key_UKTE, value_UKTE, mask, 0.0, 1.0))

        return self._blocks(tokens_N, positions_N, mix)

    def step(self, tokens_B: Tensor, positions_B: Tensor, rows: Rows, used: int) -> Tensor:
        """Logits [B, V] after one more token in each of the first B rows; all positions are below `used`."""
        batch, heads, size = len(tokens_B), self.config.kv_heads, self.config.head_size
        slots = rows.keys.shape[3]
        row_B = torch.arange(batch, device=self.device)
        index = (row_B[:, None] * heads + torch.arange(heads, device=self.device)) * slots + positions_B[:, None]
        index = index.flatten()
        hidden_BS = torch.arange(used, device=self.device) > positions_B[:, None]
        bias = torch.zeros(hidden_BS.shape, device=self.device, dtype=self.dtype).masked_fill_(hidden_BS, -torch.inf)
        bias = bias[:, None].expand(batch, heads, used).reshape(batch * heads, 1, used)

        count = self.config.layers
        stored = [rows.keys.view(count, -1, size).unbind(), rows.values.view(count, -1, size).unbind()]
        by_head = (count, batch * heads, slots, size)
        keys = rows.keys[:, :batch].view(by_head)[:, :, :used].transpose(2, 3).unbind()
        values = rows.values[:, :batch].view(by_head)[:, :, :used].unbind()

        def mix(layer: int, query_BHE: Tensor, key_BKE: Tensor, value_BKE: Tensor) -> Tensor:
            stored[0][layer].index_copy_(0, index, key_BKE.reshape(-1, size))
            stored[1][layer].index_copy_(0, index, value_BKE.reshape(-1, size))
            scores = torch.baddbmm(bias, query_BHE.reshape(batch * heads, -1, size), keys[layer])
            return torch.bmm(torch.softmax(scores, -1), values[layer]).view(batch, -1)

        return self.logits(self._blocks(tokens_B, positions_B, mix))

    def _blocks(self, tokens_N: Tensor, positions_N: Tensor, mix: Mix) -> Tensor:
        x_ND = F.embedding(tokens_N, self.weights.embedding)
        turn_N1E = None
        if self.weights.turns is not None:
            turn_N1E = self.weights.turns[positions_N]
        if self.weights.places is not None:
            x_ND = x_ND + self.weights.places[positions_N]
        x_ND = x_ND.to(self.dtype)
        start_ND = x_ND = self._normed(x_ND) * self.config.width**0.5 if self.weights.mixes else x_ND
        for index, layer in enumerate(self.weights.layers):
            if self.weights.mixes:
                residual, embedded = self.weights.mixes[index]
                x_ND = residual * x_ND + embedded * start_ND
            x_ND = self._block(index, layer, x_ND, tokens_N, turn_N1E, mix)
        return x_ND

    def _block(
        self, index: int, layer: Layer, x_ND: Tensor, tokens_N: Tensor, turn_N1E: Tensor | None, mix: Mix
    ) -> Tensor:
        normed_ND = self._normed(x_ND)
        turning, heads, size = self.turning, self.config.heads, self.config.head_size
        joined = _times(normed_ND, layer.attention_in, layer.attention_in_bias).view(len(x_ND), -1, size)
        turned, value = joined[:, :turning], joined[:, turning:]
        if layer.value_gate is not None and layer.value_table is not None:
            gate = 2 * torch.sigmoid(F.linear(normed_ND[:, : layer.value_gate.shape[1]], layer.value_gate))
            value = value + gate[..., None] * F.embedding(tokens_N, layer.value_table).view(value.shape)
        if layer.head_scale is not None:
            turned = _rms_normed(turned, self.head_floor).mul_(layer.head_scale)
        if turn_N1E is not None:
            turned = _turned(turned, turn_N1E)
        mixed_ND = mix(index, turned[:, :heads], turned[:, heads:], value)
        x_ND = _added(x_ND, mixed_ND, layer.attention_out, layer.attention_out_bias)
        inner = _times(self._normed(x_ND), layer.forward_in, layer.forward_in_bias)
        return _added(x_ND, self._bent(inner), layer.forward_out, layer.forward_out_bias)

    def _bent(self, inner: Tensor) -> Tensor:
        if self.config.gated:
            gate, up = inner.chunk(2, dim=-1)
            return F.silu(gate).mul_(up)
        if self.config.architecture == "speedrun":
            return F.relu(inner).square_()
        return F.gelu(inner, approximate="tanh" if self.config.architecture == "gpt2" else "none")

    def _normed(self, x_ND: Tensor) -> Tensor:
        """RMSNorm less the factor sqrt(D), which stands in the weights, or LayerNorm."""
        if self.config.rotary:
            return _rms_normed(x_ND, self.floor)
        return F.layer_norm(x_ND, x_ND.shape[-1:], eps=self.config.norm_eps)

    def logits(self, x_ND: Tensor) -> Tensor:
        """Logits [..., V] in single precision of vectors that `hidden` gave."""
        logits = _times(self._normed(x_ND), self.weights.head, self.weights.head_bias).float()
        cap = self.config.softcap
        return cap * torch.tanh(logits / cap) if cap else logits


def _rms_normed(x: Tensor, floor: Tensor) -> Tensor:
    """x / sqrt(sum(x^2) + floor^2): one short operation after another, on a CPU half the time of `F.rms_norm`."""
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x / torch.hypot(length, floor)


def _times(x_ND: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
    return torch.mm(x_ND, matrix) if bias is None else torch.addmm(bias, x_ND, matrix)


def _added(x_ND: Tensor, entering: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
    """x + entering @ matrix + bias."""
    x_ND.addmm_(entering, matrix)
    return x_ND if bias is None else x_ND.add_(bias)


def _turned(x_NHE: Tensor, turn_N1E: Tensor) -> Tensor:
    """Turn the pairs that lie side by side by their position's angle."""
    if x_NHE.dtype != torch.float32:
        return _turned(x_NHE.float(), turn_N1E).to(x_NHE.dtype)
    pairs = torch.view_as_complex(x_NHE.view(*x_NHE.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * turn_N1E).view(x_NHE.shape)

"""What a model costs, counted from its shape alone: parameters, operations, memory. Imports no torch.

Each count is held against a built model by a test; the memory of activations is an estimate, held within 5%.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

GATE_WIDTH = 12
"""Channels of the residual stream that the gates of value embeddings read (nanochat)."""

LOGITS_BYTES = 48 << 20
"""The largest piece of logits that the loss holds at a time."""


class Shape(Protocol):
    """The fields of `ModelConfig` that costs depend on."""

    @property
    def architecture(self) -> str:
        """Name of the architecture."""

    @property
    def vocab_size(self) -> int:
        """Tokens."""

    @property
    def layers(self) -> int:
        """Blocks."""

    @property
    def heads(self) -> int:
        """Query heads."""

    @property
    def kv_heads(self) -> int:
        """Key/value heads."""

    @property
    def head_size(self) -> int:
        """Width of a head."""

    @property
    def width(self) -> int:
        """Width of the residual stream."""

    @property
    def hidden(self) -> int:
        """Inner width of the feed-forward."""

    @property
    def context(self) -> int:
        """Longest sequence."""

    @property
    def tied(self) -> bool | None:
        """Whether the head is the embedding."""

    @property
    def attention_bias(self) -> bool | None:
        """Whether the attention's projections have biases."""

    @property
    def gated(self) -> bool:
        """Whether the feed-forward is SwiGLU."""

    def has_value_embedding(self, layer: int) -> bool:
        """Whether a layer has a value embedding."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of a training process's tensors. `activations` is an estimate."""

    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.gradients + self.optimizer + self.activations


def _value_embeddings(shape: Shape) -> int:
    return sum(shape.has_value_embedding(layer) for layer in range(shape.layers))


def hidden_matrices(shape: Shape) -> int:
    """Numbers in the two-dimensional weights of the blocks: what Muon turns."""
    d, q, kv = shape.width, shape.heads * shape.head_size, shape.kv_heads * shape.head_size
    block = 2 * d * q + 2 * d * kv + (3 if shape.gated else 2) * d * shape.hidden
    gates = _value_embeddings(shape) * min(GATE_WIDTH, d) * shape.kv_heads
    return shape.layers * block + gates


def lookups(shape: Shape) -> int:
    """Numbers that are only looked up, never multiplied: embeddings, unless the head is one of them."""
    tokens = 0 if shape.tied else shape.vocab_size * shape.width
    positions = shape.context * shape.width if shape.architecture == "gpt2" else 0
    return tokens + positions + _value_embeddings(shape) * shape.vocab_size * shape.kv_heads * shape.head_size


def _vectors(shape: Shape) -> int:
    d, size, layers = shape.width, shape.head_size, shape.layers
    if shape.architecture == "speedrun":
        return 2 * layers
    biases = shape.heads * size + 2 * shape.kv_heads * size + d if shape.attention_bias else 0
    if shape.gated:
        return layers * (biases + 2 * d + (2 * size if shape.architecture == "qwen3" else 0)) + d
    return layers * (biases + shape.hidden + d + 4 * d) + 2 * d


def parameters(shape: Shape) -> int:
    """Trained numbers."""
    return hidden_matrices(shape) + lookups(shape) + shape.vocab_size * shape.width + _vectors(shape)


def flops_per_token(shape: Shape) -> int:
    """Operations to train on one token: 6 per weight of a product plus attention (PaLM, appendix B)."""
    attention = 12 * shape.layers * shape.heads * shape.head_size * shape.context
    return 6 * (parameters(shape) - lookups(shape)) + attention


def memory(shape: Shape, sequences: int, optimizer: str = "adamw", precision: str = "fp32") -> Memory:
    """Bytes to train on `sequences` sequences of full length in one pass, all weights trained.

    Weights, gradients and optimiser state are fp32 in every `precision`. AdamW keeps two numbers a weight, Muon one
    for each of its own. Activations: the tensors that backward needs, all layers of them, and one chunk of logits.
    """
    count = parameters(shape)
    state = 2 * count - (hidden_matrices(shape) if optimizer == "muon" else 0)
    return Memory(4 * count, 4 * count, 4 * state, activations(shape, sequences, precision))


def activations(shape: Shape, sequences: int, precision: str = "fp32") -> int:
    """Bytes that one pass keeps for backward."""
    d, q, kv = shape.width, shape.heads * shape.head_size, shape.kv_heads * shape.head_size
    block = 4 * d + 2 * q + 2 * kv + (4 if shape.gated else 2) * shape.hidden
    block += q + kv if shape.architecture in ("qwen3", "speedrun") else 0
    tokens = sequences * shape.context
    kept = tokens * (shape.layers * block + 2 * d)
    if shape.architecture == "speedrun":
        kept += tokens * (shape.layers * d + 2 * _value_embeddings(shape) * kv)
    logits = min(4 * tokens * shape.vocab_size, LOGITS_BYTES)
    return kept * (4 if precision == "fp32" else 2) + logits

"""The shape of a Transformer, checked and costed before anything is allocated. Imports no torch.

One config serves four architectures, and all of them share one `Transformer`:

    seed    sinusoidal positions, LayerNorm, GELU, dropout: the MiniLLM of the founding documents
    gpt2    learned positions, LayerNorm, tanh-GELU, tied head                      (Radford et al. 2019)
    llama   rotary positions, RMSNorm, SwiGLU, grouped-query attention              (Touvron et al. 2023)
    qwen3   llama with RMSNorm on every query and key head; the default             (Qwen3 report, 2025)
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from llm_core.contract import BadInput

Architecture = Literal["seed", "gpt2", "llama", "qwen3"]

PRESETS: dict[str, dict[str, Any]] = {
    "seed": {"vocab_size": 50257, "layers": 6, "heads": 6, "width": 288, "context": 256, "dropout": 0.1},
    "gpt2": {"vocab_size": 50257, "layers": 12, "heads": 12, "width": 768, "context": 1024, "dropout": 0.1},
    "llama": {"vocab_size": 32000, "layers": 12, "heads": 12, "width": 768, "context": 1024},
    "qwen3": {"vocab_size": 4096, "layers": 4, "heads": 4, "width": 128, "context": 128},
}


@dataclass(frozen=True)
class ModelConfig:
    """Sizes and choices of one model. Zero (or None) for a derived size means the architecture's usual value.

    Raises `BadInput` with one sentence when the sizes do not fit together.
    """

    architecture: Architecture
    vocab_size: int
    layers: int
    heads: int
    width: int
    context: int
    kv_heads: int = 0
    """Key/value heads; each serves heads / kv_heads query heads. 0: as many as heads."""
    head_size: int = 0
    """Width of one head. 0: width / heads."""
    hidden: int = 0
    """Inner width of the feed-forward. 0: 4 width, or 8/3 width rounded up to 32 where it is gated."""
    dropout: float = 0.0
    """Share of activations zeroed in training, after attention weights and each branch (and the embedding in gpt2)."""
    tied: bool | None = None
    """Whether the output head is the embedding. None: only in gpt2."""
    attention_bias: bool | None = None
    """Biases on the attention's projections. None: only in seed and gpt2."""
    rope_base: float = 10000.0
    """Base of the rotary angles."""
    norm_eps: float = 0.0
    """Added to the variance in norms. 0: 1e-5, or 1e-6 for qwen3."""
    initial_std: float = 0.02
    """Standard deviation of the initial weights; residual outputs are scaled as the architecture says."""
    embedding_std: float = 0.0
    """The same of the token embedding. 0: 0.2 in the rotary architectures with a head of its own, else initial_std."""

    def __post_init__(self) -> None:
        if self.architecture not in get_args(Architecture):
            raise BadInput(f"model.preset: {self.architecture!r} is none of {', '.join(get_args(Architecture))}")
        for name in ("vocab_size", "layers", "heads", "width", "context"):
            if getattr(self, name) < 1:
                raise BadInput(f"model.{name}: {getattr(self, name)} must be at least 1")
        self._derive()
        self._check()

    def _derive(self) -> None:
        classic = self.architecture in ("seed", "gpt2")
        derived = {
            "kv_heads": self.kv_heads or self.heads,
            "head_size": self.head_size or self._divided(),
            "hidden": self.hidden or (4 * self.width if classic else -(-8 * self.width // 96) * 32),
            "tied": self.architecture == "gpt2" if self.tied is None else self.tied,
            "attention_bias": classic if self.attention_bias is None else self.attention_bias,
            "embedding_std": self.embedding_std or (self.initial_std if classic or self.tied else 0.2),
            "norm_eps": self.norm_eps or (1e-6 if self.architecture == "qwen3" else 1e-5),
        }
        for name, value in derived.items():
            object.__setattr__(self, name, value)

    def _divided(self) -> int:
        if self.width % self.heads:
            raise BadInput(f"model.heads: {self.heads} heads do not divide the width {self.width}")
        return self.width // self.heads

    def _check(self) -> None:
        if self.heads % self.kv_heads:
            raise BadInput(f"model.kv_heads: {self.kv_heads} key/value heads do not divide {self.heads} heads")
        if self.rotary and self.head_size % 2:
            raise BadInput(f"model.head_size: {self.head_size} must be even, rotary positions turn pairs")
        if self.architecture == "seed" and self.width % 2:
            raise BadInput(f"model.width: {self.width} must be even, sine and cosine positions alternate")
        if not self.rotary and (self.kv_heads != self.heads or self.head_size * self.heads != self.width):
            raise BadInput(f"model.kv_heads, model.head_size: {self.architecture} has plain multi-head attention")
        if self.architecture == "gpt2" and not (self.tied and self.attention_bias):
            raise BadInput("model.tied, model.attention_bias: gpt2 has a tied head and biases")
        if not 0.0 <= self.dropout < 1.0:
            raise BadInput(f"model.dropout: {self.dropout} must be at least 0 and below 1")

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> ModelConfig:
        """The preset's sizes with `overrides`; an override of None keeps the preset's value."""
        if name not in PRESETS:
            raise BadInput(f"model.preset: {name!r} is none of {', '.join(PRESETS)}")
        unknown = sorted(set(overrides) - {field.name for field in fields(cls)})
        if unknown:
            raise BadInput(f"model.{unknown[0]}: no such setting of a model")
        given = {key: value for key, value in overrides.items() if value is not None}
        return cls(**{"architecture": name, **PRESETS[name], **given})

    @property
    def rotary(self) -> bool:
        """Whether positions are rotations of queries and keys, rather than vectors added to the embedding."""
        return self.architecture in ("llama", "qwen3")

    def parameters(self) -> int:
        """Trained numbers, counted without building the model."""
        d, q, kv = self.width, self.heads * self.head_size, self.kv_heads * self.head_size
        attention = 2 * d * q + 2 * d * kv
        if self.attention_bias:
            attention += q + 2 * kv + d
        if self.rotary:
            block = attention + 3 * d * self.hidden + 2 * d
            block += 2 * self.head_size if self.architecture == "qwen3" else 0
        else:
            block = attention + 2 * d * self.hidden + self.hidden + d + 4 * d
        positions = self.context * d if self.architecture == "gpt2" else 0
        final_norm = d if self.rotary else 2 * d
        embeddings = self.vocab_size * d * (1 if self.tied else 2)
        return embeddings + positions + self.layers * block + final_norm

    def flops_per_token(self) -> int:
        """Floating-point operations to train on one token: 6 per matmul weight plus attention (PaLM, appendix B)."""
        lookup = 0 if self.tied else self.vocab_size * self.width
        positions = self.context * self.width if self.architecture == "gpt2" else 0
        attention = 12 * self.layers * self.heads * self.head_size * self.context
        return 6 * (self.parameters() - lookup - positions) + attention

    def to_dict(self) -> dict[str, Any]:
        """All fields, derived sizes filled in."""
        return asdict(self)

"""The shape of a Transformer, checked and costed before anything is allocated. Imports no torch.

One config serves five architectures, and all of them share one `Transformer`:

    seed      sinusoidal positions, LayerNorm, GELU, dropout: the MiniLLM of the founding documents
    gpt2      learned positions, LayerNorm, tanh-GELU, tied head                    (Radford et al. 2019)
    llama     rotary positions, RMSNorm, SwiGLU, grouped-query attention            (Touvron et al. 2023)
    qwen3     llama with RMSNorm on every query and key head; the default           (Qwen3 report, 2025)
    speedrun  rotary positions, norms without weights, one more on the embedding and on queries and keys, ReLU^2, capped
              logits, gated value embeddings in every other layer, and a learned mix of each layer's input with the
              embedding, as in the public speedruns (github.com/KellerJordan/modded-nanogpt, karpathy/nanochat)

A preset is an architecture with sizes. Those named by an architecture are small or as published; the others are sizes
to train at: tiny, seed-30m, gpt2-124m, 350m, 1b.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from llm_core.contract import BadInput
from llm_core.model import costs

Architecture = Literal["seed", "gpt2", "llama", "qwen3", "speedrun"]
PresetName = Literal["seed", "gpt2", "llama", "qwen3", "speedrun", "tiny", "seed-30m", "gpt2-124m", "350m", "1b"]

LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
"""Last names of the blocks' matrices, which may get a low-rank addition."""

_SEED = {"vocab_size": 50257, "layers": 6, "heads": 6, "width": 288, "context": 256, "dropout": 0.1}
_GPT2 = {"vocab_size": 50257, "layers": 12, "heads": 12, "width": 768, "context": 1024}
_QWEN3 = {"architecture": "qwen3", "vocab_size": 50257, "tied": True, "kv_heads": 8, "heads": 16}

PRESETS: dict[str, dict[str, Any]] = {
    "seed": _SEED,
    "gpt2": _GPT2 | {"dropout": 0.1},
    "llama": {"vocab_size": 32000, "layers": 12, "heads": 12, "width": 768, "context": 1024},
    "qwen3": {"vocab_size": 4096, "layers": 4, "heads": 4, "width": 128, "context": 128},
    "speedrun": {"vocab_size": 50257, "layers": 12, "heads": 6, "width": 768, "context": 1024},
    "tiny": {"architecture": "qwen3", "vocab_size": 512, "layers": 2, "heads": 2, "width": 64, "context": 64},
    "seed-30m": _SEED | {"architecture": "seed"},
    "gpt2-124m": _GPT2 | {"architecture": "gpt2"},
    "350m": _QWEN3 | {"layers": 24, "width": 1024, "hidden": 3072, "context": 1024},
    "1b": _QWEN3 | {"layers": 20, "width": 2048, "hidden": 5632, "context": 2048},
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
    """Inner width of the feed-forward. 0: 4 width, or 8/3 width rounded up to 32 where it is gated (llama, qwen3)."""
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
    initial_std: float = 0.0
    """Standard deviation of the initial weights; residual outputs are scaled as the architecture says. 0: 0.02, or
    width ** -0.5 in speedrun."""
    embedding_std: float = 0.0
    """The same of the token embedding. 0: 0.2 in llama and qwen3 with a head of its own, 0.8 in speedrun, else
    initial_std."""
    softcap: float = -1.0
    """Logits are softcap * tanh(logits / softcap); 0: as they are. Below 0: 15 in speedrun, else 0."""

    def __post_init__(self) -> None:
        if self.architecture not in get_args(Architecture):
            raise BadInput(f"model.preset: {self.architecture!r} is none of {', '.join(get_args(Architecture))}")
        for name in ("vocab_size", "layers", "heads", "width", "context"):
            if getattr(self, name) < 1:
                raise BadInput(f"model.{name}: {getattr(self, name)} must be at least 1")
        self._derive()
        self._check()

    def _derive(self) -> None:
        classic, speedrun = self.architecture in ("seed", "gpt2"), self.architecture == "speedrun"
        initial_std = self.initial_std or (self.width**-0.5 if speedrun else 0.02)
        own_std = 0.8 if speedrun else 0.2
        derived = {
            "kv_heads": self.kv_heads or self.heads,
            "head_size": self.head_size or self._divided(),
            "hidden": self.hidden or (-(-8 * self.width // 96) * 32 if self.gated else 4 * self.width),
            "tied": self.architecture == "gpt2" if self.tied is None else self.tied,
            "attention_bias": classic if self.attention_bias is None else self.attention_bias,
            "initial_std": initial_std,
            "embedding_std": self.embedding_std or (initial_std if classic or self.tied else own_std),
            "norm_eps": self.norm_eps or (1e-6 if self.architecture == "qwen3" else 1e-5),
            "softcap": self.softcap if self.softcap >= 0 else 15.0 * speedrun,
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
        if self.architecture == "speedrun" and (self.tied or self.attention_bias):
            raise BadInput("model.tied, model.attention_bias: speedrun has a head of its own and no biases")
        if self.softcap and self.architecture != "speedrun":
            raise BadInput(f"model.softcap: {self.architecture} leaves its logits as they are; only speedrun caps them")
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
        return self.architecture in ("llama", "qwen3", "speedrun")

    @property
    def gated(self) -> bool:
        """Whether the feed-forward is SwiGLU."""
        return self.architecture in ("llama", "qwen3")

    def has_value_embedding(self, layer: int) -> bool:
        """Whether the layer adds an embedding of the token to its values: in speedrun every other one, the last too."""
        return self.architecture == "speedrun" and layer % 2 == (self.layers - 1) % 2

    def check_vocabulary(self, tokens: int) -> None:
        """Raises `BadInput` if a tokenizer of `tokens` tokens has ids that the model does not know."""
        if tokens > self.vocab_size:
            raise BadInput(f"model.vocab_size: the tokenizer has {tokens} tokens, the model knows {self.vocab_size}")

    def parameters(self) -> int:
        """Trained numbers, counted without building the model."""
        return costs.parameters(self)

    def flops_per_token(self) -> int:
        """Floating-point operations to train on one token: 6 per matmul weight plus attention (PaLM, appendix B)."""
        return costs.flops_per_token(self)

    def memory(self, sequences: int, optimizer: str = "adamw", precision: str = "fp32") -> costs.Memory:
        """Estimated bytes of training on `sequences` sequences of full length in one pass; see `costs.memory`."""
        return costs.memory(self, sequences, optimizer, precision)

    def to_dict(self) -> dict[str, Any]:
        """All fields, derived sizes filled in."""
        return asdict(self)

"""The sizes that plans choose from, and how to train each: depth, vocabulary, context, batch, learning rate, memory."""

from __future__ import annotations

import math
from collections.abc import Iterator

from llm_core.model.config import ModelConfig

WIDTHS = (16, 24, 32, 40, 48, 64, 80, *range(96, 512, 32), *range(512, 1536, 64), *range(1536, 8193, 128))
MOST_RATE = 0.006
"""The default of this project, measured at 1.3 million parameters: no smaller model is given more."""
STEP_LAW = "Step Law, Li et al. 2025, arXiv:2503.04715"
VOCABULARY_LAW = "Tao et al. 2024, arXiv:2407.13623"


def depth_for(width: int) -> int:
    """Layers that go with a width: 4 with 128, 12 with 768, 22 with 2048.

    Kaplan et al. 2020 (figure 5): the loss hardly depends on the shape over a wide range around such ratios.
    """
    return max(1, round(width / (32 * math.pow(max(1.0, width / 128), 0.39))))


def heads_for(width: int) -> int:
    """Heads of about 32 channels in small models, 64 and 128 in larger ones; they divide the width into even parts."""
    wanted = 32 if width < 384 else 64 if width < 2048 else 128
    return next(heads for heads in range(max(1, width // wanted), 0, -1) if width % (2 * heads) == 0)


def vocabulary_for(width: int) -> int:
    """The power of two nearest to the best vocabulary of a model: its embedding grows as the body's size^0.83.

    Tao et al. 2024 (Scaling Laws with Vocabulary, arXiv:2407.13623), scaled through their 62,000 tokens for a body of 7
    billion parameters at width 4096. At width 128 that is 1,024; 2,048 was found best there on the embedded example.
    """
    body = 12.0 * depth_for(width) * width**2
    best = 62_000 * 4096 * (body / 7e9) ** 0.83 / width
    return int(2 ** min(17, max(10, round(math.log2(best)))))


def model_of(width: int, vocab_size: int | None, context: int, architecture: str = "qwen3") -> ModelConfig:
    """The family's model of a width. `vocab_size` None: the one that goes with it."""
    return ModelConfig.preset(
        architecture,
        vocab_size=vocab_size or vocabulary_for(width),
        layers=depth_for(width),
        heads=heads_for(width),
        width=width,
        context=context,
    )


def family(vocab_size: int | None, context: int, architecture: str = "qwen3") -> Iterator[ModelConfig]:
    """One model a width, from the smallest up."""
    return (model_of(width, vocab_size, context, architecture) for width in WIDTHS)


def context_for(flops: float) -> int:
    """Tokens of a sequence where nothing else is said: longer ones pay only in larger models."""
    steps = ((1e15, 128), (1e17, 256), (1e19, 512), (1e21, 1024))
    return next((context for limit, context in steps if flops < limit), 2048)


def batch_tokens(tokens: float) -> float:
    """Tokens of one step that are best for `tokens` in all: 0.58 D^0.571, Step Law (Li et al. 2025)."""
    return float(0.58 * tokens**0.571)


def learning_rate(shape: ModelConfig, tokens: float) -> float:
    """AdamW's best rate: 1.79 N^-0.713 D^0.307 with N without embeddings, Step Law (Li et al. 2025).

    Its runs began at 46 million parameters; for much smaller models it asks for more than was found to be good.
    """
    return float(min(MOST_RATE, 1.79 * body_parameters(shape) ** -0.713 * tokens**0.307))


def body_parameters(shape: ModelConfig) -> int:
    """Parameters without token and position embeddings and output head, as Kaplan et al. count."""
    tables = 1 if shape.tied else 2
    positions = shape.context * shape.width if shape.architecture == "gpt2" else 0
    return shape.parameters() - tables * shape.vocab_size * shape.width - positions


def training_memory(shape: ModelConfig, rows: int, lanes: int = 1, precision: str = "fp32") -> int:
    """Bytes to train with Muon on `rows` sequences in a pass, `lanes` passes side by side; an estimate."""
    once = shape.memory(rows, "muon", precision)
    return once.total + (lanes - 1) * (once.gradients + once.activations)

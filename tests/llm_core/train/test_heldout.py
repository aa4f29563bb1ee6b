"""Held-out likelihood scores every token once, with the context that the sliding window promises."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from llm_core.model.config import ModelConfig
from llm_core.model.transformer import Transformer
from llm_core.train.heldout import bits_per_byte, document_nats, spread

CONTEXT, END = 12, 40


def make() -> Transformer:
    torch.manual_seed(0)
    model = Transformer(ModelConfig.preset("seed", vocab_size=41, layers=1, heads=2, width=16, context=CONTEXT)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


@torch.no_grad()
def token_by_token(model: Transformer, document: np.ndarray, stride: int) -> float:
    """Each token from the window the module describes, one forward pass a token."""
    tokens, nats = [END, *document.tolist()], 0.0
    for place in range(1, len(tokens)):
        if place <= CONTEXT:
            start = 0
        else:
            stop = min(CONTEXT + 1 + -(-(place - CONTEXT) // stride) * stride, len(tokens))
            start = max(0, stop - CONTEXT - 1)
            assert place - start >= min(place, CONTEXT + 1 - stride)
        nats -= float(model(torch.tensor([tokens[start:place]]))[0, -1].log_softmax(0)[tokens[place]])
    return nats


@pytest.mark.parametrize("stride", [3, 6, 12])
def test_equals_scoring_token_by_token(stride: int) -> None:
    model, draw = make(), np.random.default_rng(0)
    documents = [draw.integers(0, 40, size) for size in (1, 5, 12, 13, 40)]
    nats, count = document_nats(model, documents, END, stride=stride, batch_tokens=40)
    assert count == 71
    assert nats == pytest.approx(sum(token_by_token(model, document, stride) for document in documents), rel=1e-5)


def test_bits_per_byte() -> None:
    assert bits_per_byte(8 * math.log(2), 4) == pytest.approx(2.0)


def test_spread_takes_even_distances() -> None:
    assert spread(10, 5) == [0, 2, 4, 6, 8]
    assert spread(3, 10) == [0, 1, 2]
    assert spread(7, 1) == [0]

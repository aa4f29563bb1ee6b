"""The chunked loss equals PyTorch's, value and gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from llm_core.model.config import ModelConfig
from llm_core.model.transformer import Transformer
from llm_core.train.loss import cross_entropy, sequence_logprobs


@pytest.mark.parametrize("chunk", [1, 7, 50, 1000, None])
def test_equals_torch(chunk: int | None) -> None:
    draw = torch.Generator().manual_seed(0)
    hidden = (torch.randn(50, 16, generator=draw) * 3).requires_grad_()
    weight = torch.randn(97, 16, generator=draw).requires_grad_()
    targets = torch.randint(0, 97, (50,), generator=draw)
    ours = cross_entropy(hidden, weight, targets, chunk) / 3

    gradients = torch.autograd.grad(ours, (hidden, weight))
    theirs = F.cross_entropy(hidden @ weight.t(), targets, reduction="sum") / 3
    expected = torch.autograd.grad(theirs, (hidden, weight))
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)
    for gradient, other in zip(gradients, expected, strict=True):
        assert torch.allclose(gradient, other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("vocabulary", [97, 2300])
@pytest.mark.parametrize(("softcap", "z_loss"), [(0.0, 0.0), (15.0, 0.0), (0.0, 0.01), (5.0, 0.01)])
def test_tiles_cap_and_z_loss_equal_autograd(vocabulary: int, softcap: float, z_loss: float) -> None:
    """2,300 tokens are three tiles, the last one narrower."""
    draw = torch.Generator().manual_seed(0)
    hidden = (torch.randn(40, 16, generator=draw) * 2).requires_grad_()
    weight = torch.randn(vocabulary, 16, generator=draw).requires_grad_()
    targets = torch.randint(0, vocabulary, (40,), generator=draw)
    targets[:3] = torch.tensor([0, vocabulary // 2, vocabulary - 1])
    ours = cross_entropy(hidden, weight, targets, 17, softcap=softcap, z_loss=z_loss)
    gradients = torch.autograd.grad(ours, (hidden, weight))
    logits = hidden @ weight.t()
    logits = softcap * torch.tanh(logits / softcap) if softcap else logits
    theirs = F.cross_entropy(logits, targets, reduction="sum") + z_loss * logits.logsumexp(1).square().sum()
    expected = torch.autograd.grad(theirs, (hidden, weight))
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    for gradient, other in zip(gradients, expected, strict=True):
        assert torch.allclose(gradient, other, atol=3e-5, rtol=1e-4)


def test_a_hopeless_target_costs_its_distance_and_is_not_infinite() -> None:
    hidden, weight = torch.tensor([[1.0]]), torch.tensor([[300.0], [-300.0]])
    assert float(cross_entropy(hidden, weight, torch.tensor([1]))) == pytest.approx(600.0)


def test_only_wanted_gradients_are_made() -> None:
    hidden, weight = torch.randn(5, 4), torch.randn(9, 4, requires_grad=True)
    cross_entropy(hidden, weight, torch.zeros(5, dtype=torch.long)).backward()
    assert weight.grad is not None
    assert hidden.grad is None


def test_sequence_logprobs_equal_the_models_own() -> None:
    torch.manual_seed(0)
    model = Transformer(ModelConfig.preset("seed", vocab_size=31, layers=1, heads=2, width=16, context=16)).eval()
    tokens = torch.randint(0, 31, (3, 10))
    mask = torch.zeros(3, 10, dtype=torch.long)
    mask[0, 4:8], mask[1, 1:], mask[2, 9] = 1, 1, 1
    scored = sequence_logprobs(model, tokens, mask)
    every = model(tokens).log_softmax(-1)
    for row in range(3):
        for place in range(10):
            expected = every[row, place - 1, tokens[row, place]].item() if mask[row, place] else 0.0
            assert scored[row, place].item() == pytest.approx(expected, abs=1e-5)
    scored.sum().backward()
    assert all(p.grad is not None for p in model.parameters())

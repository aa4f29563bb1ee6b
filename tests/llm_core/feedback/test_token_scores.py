"""Scores of answers that begin alike: computed together or one by one, they are the same, and so are the gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from llm_core.feedback import token_scores as scoring
from llm_core.feedback.token_scores import token_scores
from llm_core.model.config import ModelConfig
from llm_core.model.transformer import Transformer


def made(architecture: str) -> Transformer:
    torch.manual_seed(0)
    shape = {"vocab_size": 50, "layers": 2, "heads": 2, "width": 16, "context": 48}
    model = Transformer(ModelConfig.preset(architecture, **shape)).eval()  # some drop values in training
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def answers() -> tuple[Tensor, Tensor]:
    """Three prompts with four answers each, of unequal lengths, in no order; one row is not asked about at all."""
    draw = torch.Generator().manual_seed(1)
    rows = []
    for prompt_length in (9, 12, 5):
        prompt = torch.randint(1, 50, (prompt_length,), generator=draw).tolist()
        for answer_length in (1, 7, 4, 7):
            rows.append((prompt, torch.randint(1, 50, (answer_length,), generator=draw).tolist()))
    rows = [rows[i] for i in torch.randperm(len(rows), generator=draw).tolist()]
    tokens, mask = torch.zeros(len(rows), 20, dtype=torch.long), torch.zeros(len(rows), 20)
    for number, (prompt, answer) in enumerate(rows):
        tokens[number, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
        mask[number, len(prompt) : len(prompt) + len(answer)] = 1
    mask[3] = 0
    return tokens, mask


def gradients(model: Transformer, total: Tensor) -> list[Tensor]:
    model.zero_grad()
    total.backward()
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("architecture", ["qwen3", "gpt2", "speedrun", "seed"])
def test_shared_beginnings_change_nothing(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, (tokens, mask) = made(architecture), answers()
    weight = torch.randn(mask.shape, generator=torch.Generator().manual_seed(2))
    widths: list[int] = []
    shared = scoring.hidden
    monkeypatch.setattr(scoring, "hidden", lambda model, trees: widths.append(len(trees)) or shared(model, trees))
    together = token_scores(model, tokens, mask, 0.8)
    assert min(widths, default=len(tokens)) < len(tokens), "these rows were meant to be laid into trees"
    found = gradients(model, (together.logprobs_BT * weight).sum())
    monkeypatch.setattr(scoring, "ENOUGH_SAVED", 0.0)
    alone = token_scores(model, tokens, mask, 0.8)
    assert len(widths) == 1
    torch.testing.assert_close(together.logprobs_BT, alone.logprobs_BT, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(together.entropy_BT, alone.entropy_BT, atol=2e-5, rtol=1e-5)
    assert torch.equal(together.likeliest_BT, alone.likeliest_BT)
    for ours, plain in zip(found, gradients(model, (alone.logprobs_BT * weight).sum()), strict=True):
        torch.testing.assert_close(ours, plain, atol=2e-4, rtol=1e-3)

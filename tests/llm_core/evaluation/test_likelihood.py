"""Continuations scored in length-sorted batches against one full forward pass each."""

from __future__ import annotations

import pytest
import torch

from llm_core.evaluation.likelihood import Continuation, continuations
from llm_core.model.config import ModelConfig
from llm_core.model.transformer import Transformer


@pytest.fixture(scope="module")
def model() -> Transformer:
    torch.manual_seed(0)
    made = Transformer(ModelConfig("llama", vocab_size=50, layers=2, heads=2, width=16, context=24))
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return made.eval()


def one_by_one(model: Transformer, context: list[int], continuation: list[int]) -> Continuation:
    logits = model(torch.tensor([[*context, *continuation]])[:, :-1]).log_softmax(-1)[0, len(context) - 1 :]
    chosen = logits.gather(1, torch.tensor(continuation)[:, None])
    return Continuation(float(chosen.sum()), logits.argmax(1).tolist() == continuation)


def test_batched_equals_one_by_one(model: Transformer) -> None:
    draw = torch.Generator().manual_seed(1)

    def tokens(least: int, most: int) -> list[int]:
        size = int(torch.randint(least, most, (1,), generator=draw))
        return torch.randint(0, 50, (size,), generator=draw).tolist()  # type: ignore[no-any-return]

    requests = [(tokens(1, 12), tokens(1, 8)) for _ in range(60)]
    likeliest = model(torch.tensor([[3, 4, 5]])).argmax(-1)[0, -1:].tolist()
    requests.append(([3, 4, 5], likeliest))
    results = continuations(model, requests)
    with torch.no_grad():
        expected = [one_by_one(model, *request) for request in requests]
    assert [r.greedy for r in results] == [e.greedy for e in expected]
    assert results[-1].greedy
    assert [r.logprob for r in results] == pytest.approx([e.logprob for e in expected], abs=1e-4)


def test_a_long_context_is_cut_on_its_left(model: Transformer) -> None:
    context = [i % 50 for i in range(100)]
    whole, cut = continuations(model, [(context, [7, 8]), (context[-23:], [7, 8])])
    assert whole.logprob == pytest.approx(cut.logprob, abs=1e-5)


def test_nothing_asked() -> None:
    torch.manual_seed(0)
    assert (
        continuations(Transformer(ModelConfig("llama", vocab_size=5, layers=1, heads=1, width=4, context=4)), []) == []
    )

"""Continuations scored in length-sorted batches against one full forward pass each."""

from __future__ import annotations

import pytest
import torch

from llm_core.contract import BadInput
from llm_core.evaluation.likelihood import Continuation, continuations
from llm_core.model.config import ModelConfig
from llm_core.model.prefixes import grow
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


def test_beginnings_are_shared_and_nothing_changes(model: Transformer) -> None:
    """Worked examples, questions and choices that begin alike, some of them twice, beside what shares nothing."""
    shots = [1, 2, 3, 4, 5, 6, 7, 8]
    requests = [([*shots, 9 + q, 9], [20, 21 + c, *range(c)]) for q in range(4) for c in range(4)]
    requests += [([*shots, 9, 9], [20, 21]), (shots, [9]), (shots, [9]), ([30], [31, 32]), (shots[:2], shots[2:])]
    trees = grow([[*context, *continuation][:-1] for context, continuation in requests])
    assert sum(len(tree.tokens) for tree in trees) < 0.4 * sum(len(c) + len(d) - 1 for c, d in requests)
    assert any(not tree.plain for tree in trees)
    with torch.no_grad():
        expected = [one_by_one(model, *request) for request in requests]
    results = continuations(model, requests)
    assert [r.logprob for r in results] == pytest.approx([e.logprob for e in expected], abs=1e-5)
    assert [r.greedy for r in results] == [e.greedy for e in expected]


def test_what_does_not_fit_is_scored_window_by_window(model: Transformer) -> None:
    text = [(7 * i) % 50 for i in range(60)]
    whole = continuations(model, [(text[:5], text[5:])])[0]
    parts = continuations(model, [(text[:5], text[5:29]), (text[:29], text[29:53]), (text[:53], text[53:])])
    assert whole.logprob == pytest.approx(sum(part.logprob for part in parts), abs=1e-5)


def test_an_empty_context_is_refused(model: Transformer) -> None:
    with pytest.raises(BadInput, match="request 1"):
        continuations(model, [([1], [2]), ([], [2])])
    assert continuations(model, [([1], [])])[0] == Continuation(0.0, True)


def test_nothing_asked() -> None:
    torch.manual_seed(0)
    assert (
        continuations(Transformer(ModelConfig("llama", vocab_size=5, layers=1, heads=1, width=4, context=4)), []) == []
    )

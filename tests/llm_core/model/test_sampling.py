"""Sampling with a cache equals recomputing every token from the whole text, ragged batches included."""

from __future__ import annotations

import pytest
import torch

from llm_core.contract import BadInput
from llm_core.model.config import ModelConfig
from llm_core.model.sampling import generate
from llm_core.model.transformer import Transformer

PROMPTS = [[3, 1, 4], [1], [5, 9, 2, 6, 5, 3, 5, 8, 9], [7, 9, 3, 2, 3]]
STOPS = frozenset(range(6))


def make(name: str) -> Transformer:
    grouped = {"kv_heads": 2} if name in ("llama", "qwen3", "speedrun") else {}
    config = ModelConfig.preset(name, vocab_size=61, layers=2, heads=4, width=32, context=24, **grouped)
    model, draw = Transformer(config), torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=draw) * 0.3)
    return model.eval()


@torch.no_grad()
def recomputed(model: Transformer, prompt: list[int], longest: int) -> tuple[list[int], list[float]]:
    tokens, logprobs = list(prompt), []
    while len(tokens) < min(len(prompt) + longest, model.config.context + 1):
        scores = model(torch.tensor([tokens]))[0, -1].log_softmax(0)
        tokens.append(int(scores.argmax()))
        logprobs.append(float(scores.max()))
        if tokens[-1] in STOPS:
            break
    return tokens[len(prompt) :], logprobs


@pytest.mark.parametrize("name", ["seed", "gpt2", "llama", "qwen3", "speedrun"])
def test_greedy_equals_full_recomputation(name: str) -> None:
    model = make(name)
    lengths = set()
    for answers, prompt in zip(
        generate(model, PROMPTS, max_new_tokens=20, temperature=0, stop_ids=STOPS), PROMPTS, strict=True
    ):
        tokens, logprobs = recomputed(model, prompt, 20)
        assert answers[0].tokens == tokens
        assert answers[0].logprobs == pytest.approx(logprobs, abs=1e-4)
        assert answers[0].finished == (tokens[-1] in STOPS)
        lengths.add(len(tokens))
    assert len(lengths) > 1


@pytest.mark.parametrize("options", [{}, {"top_k": 7}, {"top_p": 0.8}, {"temperature": 0.6, "top_k": 9, "top_p": 0.9}])
def test_samples_do_not_depend_on_the_batch(options: dict[str, float]) -> None:
    model = make("qwen3")
    common = {"max_new_tokens": 12, "stop_ids": STOPS, "seed": 11}
    together = generate(model, PROMPTS, samples=3, batch_size=256, **common, **options)  # type: ignore[arg-type]
    apart = generate(model, PROMPTS, samples=3, batch_size=1, **common, **options)  # type: ignore[arg-type]
    assert [[s.tokens for s in rows] for rows in together] == [[s.tokens for s in rows] for rows in apart]
    assert len({tuple(s.tokens) for rows in together for s in rows}) > 4
    other = generate(model, PROMPTS, samples=3, **(common | {"seed": 12}), **options)  # type: ignore[arg-type]
    assert [[s.tokens for s in rows] for rows in together] != [[s.tokens for s in rows] for rows in other]


def test_samples_follow_the_distribution() -> None:
    model = make("llama")
    with torch.no_grad():
        expected = (model(torch.tensor([PROMPTS[0]]))[0, -1] / 1.5).softmax(0)
    drawn = generate(model, [PROMPTS[0]], max_new_tokens=1, temperature=1.5, samples=4000, batch_size=4000)[0]
    counts = torch.bincount(torch.tensor([s.tokens[0] for s in drawn]), minlength=61) / 4000
    assert (counts - expected).abs().sum() < 0.15
    first = drawn[0]
    assert first.logprobs[0] == pytest.approx(float(expected[first.tokens[0]].log()), abs=1e-4)


def test_top_k_and_top_p_cut_the_tail() -> None:
    model = make("llama")
    with torch.no_grad():
        order = model(torch.tensor([PROMPTS[0]]))[0, -1].argsort(descending=True).tolist()
        shares = model(torch.tensor([PROMPTS[0]]))[0, -1].softmax(0)
    by_k = generate(model, [PROMPTS[0]], max_new_tokens=1, top_k=3, samples=400, batch_size=400)[0]
    assert {s.tokens[0] for s in by_k} == set(order[:3])
    nucleus, mass = set(), 0.0
    for token in order:
        nucleus.add(token)
        mass += float(shares[token])
        if mass >= 0.7:
            break
    by_p = generate(model, [PROMPTS[0]], max_new_tokens=1, top_p=0.7, samples=2000, batch_size=2000)[0]
    assert {s.tokens[0] for s in by_p} == nucleus


def test_an_unusable_prompt_is_named() -> None:
    model = make("qwen3")
    with pytest.raises(BadInput, match="prompt 1 has 24 tokens"):
        generate(model, [[1], [2] * 24], max_new_tokens=2)
    with pytest.raises(BadInput, match="prompt 0 has 0 tokens"):
        generate(model, [[]], max_new_tokens=2)

"""The engine against a full forward pass and against `transformers`, rows joining and leaving on the way."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from llm_core.contract import BadInput
from llm_core.model import huggingface
from llm_core.model.choosing import Choice, Picker
from llm_core.model.config import ModelConfig
from llm_core.model.engine import Drawn, Engine, Request
from llm_core.model.lora import LoraOptions, adapter_off, add_lora, lora_layers
from llm_core.model.sampling import cut_at_text, generate, stop_at_text
from llm_core.model.transformer import Transformer

PROMPTS = [[3, 1, 4], [1], [5, 9, 2, 6, 5, 3, 5, 8, 9], [7, 9, 3, 2, 3]]
PEERS = {
    "gpt2": (GPT2Config, GPT2LMHeadModel),
    "llama": (LlamaConfig, LlamaForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
}


def make(name: str, **changes: Any) -> Transformer:
    grouped = {"kv_heads": 2} if name in ("llama", "qwen3", "speedrun") else {}
    config = ModelConfig.preset(name, vocab_size=61, layers=2, heads=4, width=32, context=40, **grouped, **changes)
    model, draw = Transformer(config), torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=draw) * 0.3)
    return model.eval()


def exported(model: Transformer, name: str) -> Any:
    """The same weights in `transformers`."""
    config_class, model_class = PEERS[name]
    told = {key: value for key, value in huggingface.to_config(model.config, 0).items() if key != "architectures"}
    peer = model_class(config_class(**told)).eval()
    peer.load_state_dict(huggingface.to_state(model.config, model.state_dict()), strict=False)
    peer.tie_weights()
    return peer


def drain(engine: Engine) -> dict[int, list[Drawn]]:
    found: dict[int, list[Drawn]] = {}
    while drawn := engine.step():
        for one in drawn:
            found.setdefault(one.handle, []).append(one)
    return found


@torch.no_grad()
def full_logprobs(model: Transformer, prompt: list[int], answer: list[int], temperature: float) -> torch.Tensor:
    logits = model(torch.tensor([[*prompt, *answer[:-1]]]))[0, len(prompt) - 1 :]
    return (logits / temperature).log_softmax(-1)


@pytest.mark.parametrize("name", list(PEERS))
def test_greedy_equals_transformers_generate(name: str) -> None:
    model = make(name)
    peer = exported(model, name)
    ours = generate(model, PROMPTS, max_new_tokens=20, temperature=0, repetition_penalty=1.3)
    plain = generate(model, PROMPTS, max_new_tokens=20, temperature=0)
    longest = max(map(len, PROMPTS))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in PROMPTS])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in PROMPTS])
    common = {"do_sample": False, "max_new_tokens": 20, "eos_token_id": None, "pad_token_id": 0}
    with torch.no_grad():
        theirs = peer.generate(input_ids=ids, attention_mask=mask, **common)[:, longest:].tolist()
        # transformers' penalty counts padding as text, so prompts go one by one
        held = [
            peer.generate(input_ids=torch.tensor([p]), repetition_penalty=1.3, **common)[0, len(p) :].tolist()
            for p in PROMPTS
        ]
    assert [rows[0].tokens for rows in plain] == theirs
    assert [rows[0].tokens for rows in ours] == held
    assert held != theirs


@pytest.mark.parametrize(
    "choice",
    [
        Choice(repetition_penalty=1.7),
        Choice(temperature=0.7, top_k=5),
        Choice(temperature=1.4, top_p=0.6),
        Choice(temperature=0.8, top_k=20, top_p=0.9, repetition_penalty=0.8),
    ],
)
def test_distribution_equals_transformers_processors(choice: Choice) -> None:
    logits = torch.randn(6, 300, generator=torch.Generator().manual_seed(1)) * 3
    text = torch.randint(0, 300, (6, 40), generator=torch.Generator().manual_seed(2))
    expected = RepetitionPenaltyLogitsProcessor(choice.repetition_penalty)(text, logits.clone())
    expected = TemperatureLogitsWarper(choice.temperature)(text, expected)
    if choice.top_k:
        expected = TopKLogitsWarper(choice.top_k)(text, expected)
    if choice.top_p < 1:
        expected = TopPLogitsWarper(choice.top_p)(text, expected)
    shares = expected.softmax(-1)
    seen = torch.zeros(6, 300, dtype=torch.bool).scatter(1, text, True)
    picker = Picker([choice] * 6, torch.device("cpu"))
    # every number of a fine grid, so that each token comes as often as it is likely
    grid = 4000
    counts = torch.zeros(6, 300)
    for step in range(grid):
        chosen, logprob = picker.pick(logits, seen, torch.full((6,), (step + 0.5) / grid, dtype=torch.float64))
        counts[torch.arange(6), chosen] += 1 / grid
    assert (counts - shares).abs().max() < 1.5 / grid
    assert ((counts > 0) <= (shares > 0)).all()
    model = (logits / choice.temperature).log_softmax(-1)
    assert logprob.tolist() == pytest.approx(model[torch.arange(6), chosen].tolist(), abs=1e-5)


def test_rows_with_settings_of_their_own_share_a_batch() -> None:
    model = make("qwen3")
    requests = [
        Request(PROMPTS[0], 12, temperature=0),
        Request(PROMPTS[1], 20, temperature=0.7, top_k=4, seed=3, top_logprobs=3),
        Request(PROMPTS[2], 8, top_p=0.5, seed=4),
        Request(PROMPTS[3], 16, temperature=1.6, repetition_penalty=1.5, seed=(5, 1)),
        Request(PROMPTS[3], 16, temperature=1.6, repetition_penalty=1.5, seed=(5, 2)),
    ]
    alone = []
    for request in requests:
        engine = Engine(model)
        engine.add(request)
        alone.append(drain(engine)[0])
    engine = Engine(model, max_rows=3)  # the last two wait, and join as others leave
    handles = [engine.add(request) for request in requests]
    together = drain(engine)
    for handle, mine, request in zip(handles, alone, requests, strict=True):
        found = together[handle]
        assert [one.token for one in found] == [one.token for one in mine]
        assert [one.finished for one in found] == [""] * (request.max_new_tokens - 1) + ["length"]
        expected = full_logprobs(model, list(request.prompt), [one.token for one in found], request.temperature or 1)
        for one, shares in zip(found, expected, strict=True):
            assert one.logprob == pytest.approx(float(shares[one.token]), abs=1e-4)
            best = shares.topk(request.top_logprobs)
            assert [token for token, _ in one.top] == best.indices.tolist()
            assert [value for _, value in one.top] == pytest.approx(best.values.tolist(), abs=1e-4)
    assert [one.token for one in alone[3]] != [one.token for one in alone[4]]
    assert engine.active == engine.waiting == 0


def test_rows_leave_when_told_and_the_others_go_on() -> None:
    model = make("llama")
    engine = Engine(model, max_rows=3)
    handles = [engine.add(Request(prompt, 25, seed=index)) for index, prompt in enumerate(PROMPTS)]
    found: dict[int, list[int]] = {handle: [] for handle in handles}
    for step in range(40):
        for one in engine.step():
            found[one.handle].append(one.token)
        if step == 4:
            engine.remove(handles[0])
            engine.remove(99)
    assert len(found[handles[0]]) == 5
    for index in (1, 2, 3):
        lone = Engine(model)
        lone.add(Request(PROMPTS[index], 25, seed=index))
        assert found[handles[index]] == [one.token for one in drain(lone)[0]]


def test_a_prompt_is_read_once_for_all_its_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("qwen3")
    engine = Engine(model)
    read: list[int] = []
    inner = engine.decoder.read
    monkeypatch.setattr(
        engine.decoder, "read", lambda prompts, *rest: (read.append(len(prompts)), inner(prompts, *rest))[1]
    )
    for sample in range(6):
        engine.add(Request(PROMPTS[2], 5, seed=(1, sample)))
    found = drain(engine)
    assert read == [1]
    assert len({tuple(one.token for one in drawn) for drawn in found.values()}) > 2


def test_finished_rows_cost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("qwen3")
    engine = Engine(model)
    for length in (2, 9, 4, 9):
        engine.add(Request([1, 2], length, seed=length))
    rows: list[int] = []
    inner = engine.decoder.step
    monkeypatch.setattr(
        engine.decoder, "step", lambda tokens, *rest: (rows.append(len(tokens)), inner(tokens, *rest))[1]
    )
    drain(engine)
    assert rows == [4, 3, 3, 2, 2, 2, 2, 2]


@pytest.mark.parametrize("off", [False, True])
def test_low_rank_additions_are_sampled_with_or_without(off: bool) -> None:
    model = make("qwen3")
    plain = generate(model, PROMPTS, max_new_tokens=10, temperature=0)
    add_lora(model, LoraOptions(rank=2))
    with torch.no_grad():
        for layer in lora_layers(model).values():
            layer.lora_B.normal_(generator=torch.Generator().manual_seed(3))
    if off:
        with adapter_off(model):
            assert generate(model, PROMPTS, max_new_tokens=10, temperature=0) == plain
        return
    tuned = generate(model, PROMPTS, max_new_tokens=10, temperature=0)
    assert tuned != plain
    for rows, prompt in zip(tuned, PROMPTS, strict=True):
        shares = full_logprobs(model, prompt, rows[0].tokens, 1.0)
        assert shares.argmax(-1).tolist() == rows[0].tokens


def test_new_weights_are_read_by_refresh() -> None:
    model = make("llama")
    engine = Engine(model)
    with torch.no_grad():
        model.model.norm.weight.mul_(-1)
    engine.refresh()
    engine.add(Request(PROMPTS[0], 6, temperature=0))
    assert [one.token for one in drain(engine)[0]] == generate(model, PROMPTS[:1], max_new_tokens=6, temperature=0)[0][
        0
    ].tokens


def test_half_precision_follows_the_model() -> None:
    model = make("qwen3")
    engine = Engine(model, dtype=torch.bfloat16)
    engine.add(Request(PROMPTS[2], 10, temperature=0))
    found = drain(engine)[0]
    shares = full_logprobs(model, PROMPTS[2], [one.token for one in found], 1.0)
    assert max(abs(one.logprob - float(s[one.token])) for one, s in zip(found, shares, strict=True)) < 0.5


def test_stop_strings() -> None:
    model = make("llama")
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"

    def decode(tokens: Any) -> str:
        return "".join(letters[token] for token in tokens)

    whole = decode(generate(model, PROMPTS[:1], max_new_tokens=20, seed=1)[0][0].tokens)
    stop = whole[6:9]
    ended = generate(model, PROMPTS[:1], max_new_tokens=20, seed=1, until=stop_at_text(decode, ["!", stop]))[0][0]
    assert ended.finished
    assert decode(ended.tokens) == whole[: whole.index(stop) + 3]
    assert cut_at_text(whole, ["!", stop]) == whole[: whole.index(stop)]
    with pytest.raises(BadInput, match="empty"):
        stop_at_text(decode, [""])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"prompt": []}, "prompt: 0 tokens"),
        ({"prompt": [1] * 40}, "prompt: 40 tokens"),
        ({"prompt": [61]}, "prompt: token 61"),
        ({"prompt": [-1]}, "prompt: token -1"),
        ({"max_new_tokens": 0}, "max_new_tokens: 0"),
        ({"temperature": -0.1}, "temperature: -0.1"),
        ({"temperature": math.nan}, "temperature: nan"),
        ({"top_k": -1}, "top_k: -1"),
        ({"top_p": 0.0}, "top_p: 0.0"),
        ({"top_p": 1.1}, "top_p: 1.1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty: 0.0"),
        ({"seed": -3}, "seed: -3"),
        ({"top_logprobs": -1}, "top_logprobs: -1"),
    ],
)
def test_what_cannot_be_used_is_named(change: dict[str, Any], said: str) -> None:
    engine = Engine(make("qwen3"))
    with pytest.raises(BadInput, match=said):
        engine.add(Request(**({"prompt": [1, 2], "max_new_tokens": 3} | change)))
    assert engine.step() == []


def test_a_broken_model_is_named() -> None:
    model = make("qwen3")
    with torch.no_grad():
        model.model.embed_tokens.weight.fill_(math.nan)
    with pytest.raises(BadInput, match="not finite"):
        generate(model, [[1, 2]], max_new_tokens=3)

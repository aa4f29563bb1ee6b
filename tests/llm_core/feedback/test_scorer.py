"""The reward model's heads: how they start, what they read, how they are normalised, mixed and kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from llm_core.contract import BadInput
from llm_core.data.bpe import Tokenizer
from llm_core.data.dialogue import encode, encode_prompt
from llm_core.feedback.scorer import RewardModel, load_reward_model, save_reward_model
from llm_core.model.checkpoint import load_model
from llm_core.train.loss import sequence_logprobs


@pytest.fixture
def chat(small_world: Any) -> Any:
    return load_model(small_world.chat)


@pytest.fixture
def tokenizer(small_world: Any) -> Tokenizer:
    return Tokenizer.load(small_world.chat)


def sequences(tokenizer: Tokenizer) -> list[list[int]]:
    talks = [[("user", f"max({a}, {b}) = ?"), ("assistant", str(b))] for a in range(6) for b in range(6)]
    return [encode([{"role": r, "content": c} for r, c in talk], tokenizer)[0] for talk in talks]


def test_heads_start_as_in_the_references(chat: Any) -> None:
    heads = RewardModel(chat, seed=3, heads=[f"h{i}" for i in range(400)]).weight_HD
    width = chat.config.width
    assert float(heads.detach().var()) == pytest.approx(1 / (width + 1), rel=0.05)
    assert float(heads.detach().mean()) == pytest.approx(0, abs=0.01)
    assert not torch.equal(heads, RewardModel(chat, seed=4, heads=[f"h{i}" for i in range(400)]).weight_HD)


def test_each_head_and_the_mix_have_mean_0_and_deviation_1(chat: Any, tokenizer: Tokenizer) -> None:
    model, found = RewardModel(chat, heads=("helpful", "harmless")), sequences(tokenizer)
    model.normalise(found, {"helpful": 3.0, "harmless": 1.0})
    heads = model.score_heads(found)
    assert torch.allclose(heads.mean(0), torch.zeros(2), atol=1e-4)
    assert torch.allclose(heads.std(0, correction=0), torch.ones(2), atol=1e-4)
    mixed = torch.tensor(model.score(found))
    assert float(mixed.std(correction=0)) == pytest.approx(1.0, abs=1e-3)
    wanted = heads @ torch.tensor([3.0, 1.0])
    assert torch.allclose(mixed, wanted / wanted.std(correction=0), atol=1e-3)
    model.mix({"harmless": 2.0})
    assert torch.allclose(torch.tensor(model.score(found)), heads[:, 1], atol=1e-3)
    model.mix({"helpful": -1.0})
    assert torch.allclose(torch.tensor(model.score(found)), -heads[:, 0], atol=1e-3)
    for wrong, message in (({"kind": 1.0}, "no head 'kind'"), ({"helpful": 0.0}, "cancel")):
        with pytest.raises(BadInput, match=message):
            model.mix(wrong)


def test_the_mix_is_one_linear_head(chat: Any, tokenizer: Tokenizer) -> None:
    model, found = RewardModel(chat, heads=("a", "b")), sequences(tokenizer)
    model.normalise(found, {"a": 1.0, "b": 2.0})
    row = torch.tensor(found[5])[None]
    value = model.gain * (chat.hidden(row)[0, -1] @ model.weight) + model.bias
    assert float(value.detach()) == pytest.approx(model.score(found)[5], abs=1e-4)


def test_the_likelihood_is_that_of_the_answer(chat: Any, tokenizer: Tokenizer) -> None:
    opening = encode_prompt([], tokenizer)
    model, found = RewardModel(chat, opening=opening), sequences(tokenizer)
    plain = RewardModel(chat)
    difference = model.score_heads(found)[:, 0] - plain.score_heads(found)[:, 0]
    for sequence, told in zip(found, difference.tolist(), strict=True):
        start = sequence.index(opening[0]) + 1
        mask = (torch.arange(len(sequence)) >= start).float()[None]
        logprob = float(sequence_logprobs(chat, torch.tensor(sequence)[None], mask).sum().detach())
        assert told == pytest.approx(0.3 * logprob, abs=1e-4)


def test_a_second_opening_hides_nothing(chat: Any, tokenizer: Tokenizer) -> None:
    """A policy may write the token that opens an answer; what stood before it still counts."""
    opening = encode_prompt([], tokenizer)
    model, found = RewardModel(chat, opening=opening), sequences(tokenizer)[0]
    begin = found.index(opening[0]) + 1
    nonsense = [*found[:begin], *tokenizer.encode("zxqv zxqv zxqv"), *opening, *found[begin:]]
    tokens = torch.tensor(nonsense)[None]
    hidden = chat.hidden(tokens)
    read = model._likelihood(hidden, tokens, torch.tensor([len(nonsense) - 1]))
    mask = (torch.arange(len(nonsense)) >= begin).float()[None]
    assert float(read.detach()) == pytest.approx(float(sequence_logprobs(chat, tokens, mask).sum().detach()), abs=1e-3)


def test_it_is_kept_whole(chat: Any, tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = RewardModel(chat, seed=2, heads=("helpful", "harmless"), opening=encode_prompt([], tokenizer))
    found = sequences(tokenizer)
    model.normalise(found, {"helpful": 1.0, "harmless": 0.5})
    (tmp_path / "reward").mkdir()
    save_reward_model(model, tmp_path / "reward", tokenizer, "card")
    loaded = load_reward_model(tmp_path / "reward")
    assert loaded.heads == ("helpful", "harmless")
    assert loaded.score(found) == pytest.approx(model.score(found), abs=1e-5)
    loaded.mix({"helpful": 0.2, "harmless": 0.8})  # heads are mixed anew without training anew
    (tmp_path / "reward" / "reward.json").unlink()
    with pytest.raises(BadInput, match=r"reward\.json: missing"):
        load_reward_model(tmp_path / "reward")


def test_a_reward_that_says_nothing_is_refused(chat: Any, tokenizer: Tokenizer) -> None:
    model, found = RewardModel(chat, heads=("helpful", "dull")), sequences(tokenizer)
    with torch.no_grad():
        model.weight_HD[1] = 0.0
    with pytest.raises(BadInput, match=r"reward\.heads\.dull: the 36 answers all score 0"):
        model.normalise(found)
    with torch.no_grad():
        model.weight_HD[1] = float("nan")
    with pytest.raises(BadInput, match="score no number"):
        model.normalise(found)

"""Parts of online tuning: named objectives, checks, what answers are worth, the critic, cuts of a step."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from llm_core.contract import BadInput
from llm_core.data.bpe import Tokenizer
from llm_core.data.dialogue import encode
from llm_core.feedback.actor import Actor, OnlineOptions
from llm_core.feedback.checks import CHECKS
from llm_core.feedback.comparing import asked
from llm_core.feedback.critic import Critic
from llm_core.feedback.objectives import POLICY_FORMS, policy_loss
from llm_core.feedback.online import Online, Place
from llm_core.feedback.preferences import read_votes
from llm_core.feedback.rollout import without_dropout
from llm_core.feedback.scorer import load_reward_model
from llm_core.feedback.token_scores import token_scores
from llm_core.feedback.worth import Prompt, Rewards, Sample, UselessReward, refuse_useless
from llm_core.model.checkpoint import load_model
from llm_core.train.loss import sequence_logprobs

NAMED = {
    "grpo": ("grpo|beta=0.04|kl_is_corrected=False", 0.04),
    "dapo": ("dapo|beta=0|eps_high=.28", 0.0),
    "dr_grpo": ("dr_grpo|beta=0.04|kl_is_corrected=False", 0.04),
    "bnpo": ("bnpo|beta=0.04|kl_is_corrected=False", 0.04),
    "cispo": ("cispo|beta=0|eps_high=5", 0.0),
    "gspo": ("gspo(grpo+sequence)|beta=0|eps=.2", 0.0),
    "luspo": ("luspo|sequence|beta=0", 0.0),
}


@pytest.mark.parametrize("name", NAMED)
def test_the_named_objectives_are_those_of_trl(shared_data: Path, name: str) -> None:
    folder = shared_data / "trl_fixtures"
    expected = json.loads((folder / "trl_results.json").read_text())["grpo"][NAMED[name][0]]["loss"]
    loaded = np.load(folder / "grpo_batch.npz")
    a = {key: torch.from_numpy(loaded[key]) for key in loaded.files}
    form = POLICY_FORMS[name]
    if name == "gspo":
        form = replace(form, clip_low=0.2, clip_high=0.2)  # TRL's default; the paper's is narrower
    loss = policy_loss(
        a["policy_per_token_logps"], a["old_per_token_logps"], a["advantages"], a["completion_mask"].float(),
        clip_low=form.clip_low, clip_high=form.clip_high, ratio=form.ratio, surrogate=form.surrogate,
        normaliser=form.normaliser, reference_BT=a["ref_per_token_logps"], beta=NAMED[name][1],
    )  # fmt: skip
    assert abs(float(loss) - expected) < 2e-5 * max(1.0, abs(expected))


@pytest.mark.parametrize(
    ("check", "answer", "expected", "right"),
    [
        ("python", " 7 ", "3 + 4", True),
        ("python", "8", "3 + 4", False),
        ("exact", " yes\n", "yes", True),
        ("exact", "yes!", "yes", False),
        ("number", "so it is 1,234.", "#### 1234", True),
        ("number", "1234 or 5", "1234", False),
        ("number", "none", "1234", False),
        ("number", "", "", False),
        ("contains", "The Answer is Paris.", "paris", True),
        ("contains", "London", "paris", False),
    ],
)
def test_checks(check: str, answer: str, expected: str, right: bool) -> None:
    assert CHECKS[check](answer, expected) is right


class Scorer:
    """Scores 2 for every sequence."""

    class backbone:
        class config:
            context = 96

    def score(self, sequences: Any) -> list[float]:
        return [2.0] * len(sequences)


def test_worth_is_a_weighted_mix_less_a_penalty_for_what_was_cut() -> None:
    prompt = Prompt([1, 2], [{"role": "user", "content": "3 + 4 = ?"}], "7")
    samples = [Sample(prompt, [3], [0.0], "7", True), Sample(prompt, [4], [0.0], "8", False)]
    scorer: Any = Scorer()
    mix = Rewards("mix", scorer, CHECKS["exact"], checked_weight=0.25, missing_end_penalty=0.5)
    worth = mix(samples)
    assert worth.total == [0.75 * 2 + 0.25, 0.75 * 2 - 0.5]
    assert worth.parts == {"model": [2.0, 2.0], "checked": [1.0, 0.0]}
    assert Rewards("checked", None, CHECKS["exact"])(samples).total == [1.0, 0.0]
    assert Rewards("model", scorer, CHECKS["exact"])(samples).total == [2.0, 2.0]
    with pytest.raises(BadInput, match="nothing checks the answers to '3 \\+ 4"):
        Rewards("checked", None, CHECKS["exact"])([replace(samples[0], prompt=replace(prompt, check=None))])


def test_useless_rewards_are_named_and_counted() -> None:
    with pytest.raises(UselessReward, match="not a number for 2 of 3 answers"):
        refuse_useless([float("nan"), 1.0, float("inf")])
    with pytest.raises(UselessReward, match="is 1 for all of 2 answers"):
        refuse_useless([1.0, 1.0])
    refuse_useless([1.0, 1.1])


def made(world: Any, **options: Any) -> tuple[Online, Actor]:
    """Online tuning of the small world's chat model, and what it trains."""
    chat, tokenizer = load_model(world.chat), Tokenizer.load(world.chat)
    prompts, _ = asked(read_votes(world.votes), "votes", "train", tokenizer, chat.config.context)
    torch.set_num_threads(1)
    given = OnlineOptions(**{"prompts": 4, "samples": 4, "max_new_tokens": 6} | options)
    reward = load_reward_model(world.reward)
    online = Online(given, prompts, Rewards("mix", reward, CHECKS["python"]), tokenizer, without_dropout(chat).eval())
    return online, online.actor(without_dropout(chat), Critic(reward) if given.method == "ppo" else None)


def gradients(world: Any, passes: int, **options: Any) -> list[Tensor]:
    """Of the second step of a rollout, whose ratio is not 1, cut into passes."""
    online, actor = made(world, passes=passes, epochs=2, **options)
    with torch.no_grad():
        online.objective(actor, Place(0, 0))
        for parameter in actor.policy.parameters():
            parameter.mul_(1.02)
    count = 0.0
    for part in range(passes, 2 * passes):
        loss = online.objective(actor, Place(0, part))
        loss.total.backward()
        count += loss.count
    return [p.grad / count for p in actor.parameters() if p.grad is not None]


@pytest.mark.parametrize("variant", ["grpo", "dapo", "dr_grpo", "cispo", "gspo", "luspo", "reinforce"])
def test_a_step_is_the_same_however_it_is_cut(feedback_world: Any, variant: str) -> None:
    whole = gradients(feedback_world, 1, form=POLICY_FORMS[variant])
    assert any(float(gradient.abs().max()) > 0 for gradient in whole)
    for passes in (2, 4):
        for ours, theirs in zip(gradients(feedback_world, passes, form=POLICY_FORMS[variant]), whole, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)


def test_a_step_of_ppo_is_the_same_however_it_is_cut(feedback_world: Any) -> None:
    whole = gradients(feedback_world, 1, method="ppo", form=POLICY_FORMS["dapo"])
    for ours, theirs in zip(gradients(feedback_world, 4, method="ppo", form=POLICY_FORMS["dapo"]), whole, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-4)


def test_what_teaches_nothing_may_be_left_out(feedback_world: Any) -> None:
    online, actor = made(feedback_world, drop_cut_answers=True, max_new_tokens=2, temperature=1.5)
    online.objective(actor, Place(0, 0))
    ended_B = torch.isin(actor.tokens_BT.gather(1, actor.length_B[:, None] - 1)[:, 0], torch.tensor([*online.stops]))
    assert 0 < int(ended_B.sum()) < len(ended_B), "the world gives some of each"
    assert torch.equal(actor.mask_BA.any(dim=1), ended_B)
    online.options = replace(online.options, drop_cut_answers=False, drop_flat_groups=True)
    scorer: Any = Scorer()
    online.rewards = Rewards("mix", scorer, CHECKS["python"], checked_weight=0.0)
    loss = online.objective(actor, Place(0, 0))
    assert actor.told[online.names.index("flat_groups")] == 1.0
    assert not actor.mask_BA.any(), "every prompt's answers are worth the same, so nothing is left"
    assert loss.total.item() / loss.count == 0.0


def test_the_critic_starts_as_the_reward_model(feedback_world: Any) -> None:
    reward, tokenizer = load_reward_model(feedback_world.reward), Tokenizer.load(feedback_world.chat)
    votes = read_votes(feedback_world.votes)[:4]
    for vote in votes:
        ids, mask = encode([*vote.prompt, {"role": "assistant", "content": vote.answer_a}], tokenizer)
        values = Critic(reward)(torch.tensor([ids]), torch.tensor([mask], dtype=torch.float32))
        assert values[0, -1].item() == pytest.approx(reward.score([ids])[0], abs=1e-4)


def test_token_scores(feedback_world: Any) -> None:
    model = load_model(feedback_world.chat)
    torch.manual_seed(0)
    tokens = torch.randint(0, 200, (3, 7))
    mask = torch.tensor([[0, 0, 1, 1, 1, 0, 0], [0, 1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0, 1]]).float()
    scores = token_scores(model, tokens, mask)
    torch.testing.assert_close(scores.logprobs_BT, sequence_logprobs(model, tokens, mask))
    logits = model(tokens)[:, :-1] / 0.7
    cold = token_scores(model, tokens, mask, 0.7)
    wanted = torch.distributions.Categorical(logits=logits)
    torch.testing.assert_close(cold.entropy_BT[:, 1:], wanted.entropy() * mask[:, 1:], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(
        cold.logprobs_BT[:, 1:], wanted.log_prob(tokens[:, 1:]) * mask[:, 1:], atol=1e-5, rtol=1e-4
    )
    torch.testing.assert_close(scores.likeliest_BT[:, 1:], (logits.argmax(-1) == tokens[:, 1:]) * mask[:, 1:])

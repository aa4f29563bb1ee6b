"""The chat model and the tuned one on the same held-out prompts: reward, share right, length and divergence."""

from __future__ import annotations

from collections.abc import Sequence

from llm_core.data.bpe import Tokenizer
from llm_core.data.dialogue import encode_prompt
from llm_core.feedback.checks import Check
from llm_core.feedback.preferences import POOLS, Pool, Vote, prompt_text
from llm_core.feedback.rollout import Answer, answer, divergence
from llm_core.feedback.scorer import RewardModel
from llm_core.feedback.worth import Prompt
from llm_core.model.transformer import Transformer

SHOWN = 8
"""Sampled answers that people get to see."""


def asked(
    votes: Sequence[Vote], pool: Pool, split: str, tokenizer: Tokenizer, context: int
) -> tuple[list[Prompt], int]:
    """The distinct prompts of a pool and split, in the order of the votes, and how many exceed the context."""
    found: dict[str, Vote] = {}
    for vote in votes:
        if vote.split == split and vote.rater in POOLS[pool]:
            found.setdefault(prompt_text(vote.prompt), vote)
    prompts = [Prompt(encode_prompt(vote.prompt, tokenizer), vote.prompt, vote.check) for vote in found.values()]
    fitting = [prompt for prompt in prompts if len(prompt.tokens) < context]
    return fitting, len(prompts) - len(fitting)


def compare(
    models: dict[str, Transformer],
    prompts: Sequence[Prompt],
    scorer: RewardModel,
    tokenizer: Tokenizer,
    *,
    check: Check,
    max_new_tokens: int,
    seed: int,
) -> tuple[dict[str, float], list[dict[str, str]]]:
    """Figures by model, one answer a prompt at temperature 1, and some answers; `models` are chat, then aligned.

    Both draw with the same random numbers. The KL is that of the last model from the first, in nats per answer.
    """
    (first, reference), (last, policy) = models.items()
    metrics: dict[str, float] = {"compared_prompts": len(prompts), f"kl_from_{first}": 0.0}
    if not prompts:
        return metrics, []
    samples: list[dict[str, str]] = []
    drawn: dict[str, list[Answer]] = {}
    context = policy.config.context
    for name, model in models.items():
        given = answer(
            model, tokenizer, [prompt.messages for prompt in prompts],
            samples=1, temperature=1.0, max_new_tokens=max_new_tokens, seed=seed,
        )  # fmt: skip
        drawn[name] = [answers[0] for answers in given]
        scores = scorer.score([(a.prompt_tokens + a.tokens)[:context] for a in drawn[name]])
        metrics[f"reward_{name}"] = sum(scores) / len(scores)
        metrics[f"answer_tokens_{name}"] = sum(len(a.tokens) for a in drawn[name]) / len(prompts)
        metrics[f"ended_{name}"] = sum(a.finished for a in drawn[name]) / len(prompts)
        right = [check(a.text, p.check) for a, p in zip(drawn[name], prompts, strict=True) if p.check is not None]
        if right:
            metrics[f"sampled_right_{name}"] = sum(right) / len(right)
        samples += shown(name, prompts, [a.text for a in drawn[name]])
    metrics[f"kl_from_{first}"] = divergence(policy, reference, drawn[last])
    return metrics, samples


def shown(name: str, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[dict[str, str]]:
    """The first answers as rows for people to read."""
    pairs = zip(prompts[:SHOWN], texts, strict=False)
    return [{"model": name, "prompt": prompt.messages[-1]["content"], "text": text} for prompt, text in pairs]

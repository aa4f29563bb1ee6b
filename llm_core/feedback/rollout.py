"""Answers of a model to dialogues, as text and tokens: what collect compares, align watches and evaluate judges."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from llm_core.data.bpe import Tokenizer
from llm_core.data.dialogue import encode_prompt, stop_ids
from llm_core.model.sampling import Completion, generate
from llm_core.model.transformer import Transformer
from llm_core.train.loss import sequence_logprobs

TOLD_EVERY = 128
"""Prompts between two words on the progress."""

Messages = list[dict[str, str]]


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer to a dialogue, its text without white space around it.

    `tokens` holds the closing token if the answer `finished` by itself.
    """

    prompt_tokens: list[int]
    tokens: list[int]
    text: str
    finished: bool


def answer(
    model: Transformer,
    tokenizer: Tokenizer,
    prompts: Sequence[Messages],
    *,
    samples: int,
    temperature: float,
    max_new_tokens: int,
    seed: int,
    told: Callable[[int], None] | None = None,
) -> list[list[Answer]]:
    """`samples` answers to each prompt, deterministic in `seed`; temperature 0 is greedy.

    `told` hears now and then how many prompts are answered. Raises `BadInput` for a prompt that fills the context.
    """
    special = frozenset(tokenizer.specials.values())
    encoded = [encode_prompt(prompt, tokenizer) for prompt in prompts]
    drawn = generate(
        model,
        encoded,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        stop_ids=stop_ids(tokenizer),
        samples=samples,
        seed=seed,
        told=None if told is None else _by_prompts(told, samples, len(prompts)),
    )
    return [
        [_answer(prompt, completion, tokenizer, special) for completion in completions]
        for prompt, completions in zip(encoded, drawn, strict=True)
    ]


def _answer(prompt: list[int], completion: Completion, tokenizer: Tokenizer, special: frozenset[int]) -> Answer:
    text = tokenizer.decode([token for token in completion.tokens if token not in special]).strip()
    return Answer(prompt, completion.tokens, text, completion.finished)


def _by_prompts(told: Callable[[int], None], samples: int, prompts: int) -> Callable[[int], None]:
    """Pass the number of answers on as one of prompts, at every `TOLD_EVERY` prompts and at the end."""
    reached = 0

    def hear(answers: int) -> None:
        nonlocal reached
        done = answers // samples
        if done >= min(reached + TOLD_EVERY, prompts) > reached:
            reached = done
            told(done)

    return hear


def without_dropout(model: Transformer) -> Transformer:
    """A copy that drops nothing in training: preference learning compares two answers under the same network."""
    copy = Transformer(replace(model.config, dropout=0.0)).to(model.head_weight.device)
    copy.load_state_dict(model.state_dict())
    return copy


@torch.no_grad()
def answer_logprob(model: Transformer, answers: Sequence[Answer], *, batch: int = 256) -> list[float]:
    """Log-probability of each whole answer given its prompt under `model`, in nats and in the order given."""
    order = sorted(range(len(answers)), key=lambda i: len(answers[i].prompt_tokens) + len(answers[i].tokens))
    logprobs = [0.0] * len(answers)
    for start in range(0, len(order), batch):
        rows = order[start : start + batch]
        sequences = [answers[i].prompt_tokens + answers[i].tokens for i in rows]
        longest = max(map(len, sequences))
        tokens_BT = torch.zeros(len(rows), longest, dtype=torch.long)
        mask_BT = torch.zeros(len(rows), longest)
        for b, (i, sequence) in enumerate(zip(rows, sequences, strict=True)):
            tokens_BT[b, : len(sequence)] = torch.tensor(sequence)
            mask_BT[b, len(answers[i].prompt_tokens) : len(sequence)] = 1.0
        device = model.head_weight.device
        sums = sequence_logprobs(model, tokens_BT.to(device), mask_BT.to(device)).sum(-1)
        for i, value in zip(rows, sums.tolist(), strict=True):
            logprobs[i] = value
    return logprobs


def divergence(policy: Transformer, reference: Transformer, answers: Sequence[Answer]) -> float:
    """KL(policy || reference) in nats per answer, estimated on answers drawn from `policy` at temperature 1."""
    ours, theirs = answer_logprob(policy, answers), answer_logprob(reference, answers)
    return sum(x - y for x, y in zip(ours, theirs, strict=True)) / len(answers)

"""Sampling answers in batches with a key/value cache.

Notable:
- A prompt is read once, however many answers are drawn from it.
- Prompts of unequal length share a batch: they are padded on the right, and a slot of the cache is a position, so a
  new token simply overwrites the padding.
- Rows that have ended leave the batch.
- The random numbers of an answer depend on (seed, prompt, sample, position) only, never on the batch it was in.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from llm_core.contract import BadInput
from llm_core.model.attention import Cache
from llm_core.model.transformer import Transformer

SHRINK = 0.25
"""Ended rows leave once they are this share of the batch: leaving costs a copy of the cache."""


@dataclass(slots=True)
class Completion:
    """A drawn answer. `finished`: it ended with a stop token (which is part of `tokens`), not for want of room."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    """Log-probability of each token at the given temperature (1 when greedy), before top-k and top-p."""
    finished: bool = False


@dataclass(frozen=True, slots=True)
class _Choice:
    temperature: float
    top_k: int
    top_p: float


@torch.inference_mode()
def generate(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    stop_ids: Collection[int] = frozenset(),
    samples: int = 1,
    seed: int = 0,
    batch_size: int = 256,
) -> list[list[Completion]]:
    """Answers to each prompt: the outer list follows `prompts`, the inner one has `samples` entries.

    temperature 0 takes the most likely token. `top_k` 0 and `top_p` 1 leave all tokens. `batch_size`: rows (prompts
    times samples) at a time. An answer also ends when the model's context is full. Raises `BadInput` for an empty
    prompt or one that leaves no room in the context.
    """
    context = model.config.context
    for index, prompt in enumerate(prompts):
        if not 0 < len(prompt) < context:
            raise BadInput(f"prompts: prompt {index} has {len(prompt)} tokens; the context takes 1 to {context - 1}")
    training = model.training
    model.eval()
    choice = _Choice(temperature, top_k, top_p)
    answers = [[Completion() for _ in range(samples)] for _ in prompts]
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    per_batch = max(1, batch_size // samples)
    for start in range(0, len(order), per_batch):
        picked = order[start : start + per_batch]
        draws = _uniforms(seed, picked, samples, max_new_tokens)
        rows = [answer for i in picked for answer in answers[i]]
        _complete(model, [prompts[i] for i in picked], rows, draws, max_new_tokens, frozenset(stop_ids), choice)
    model.train(training)
    return answers


def _uniforms(seed: int, picked: Sequence[int], samples: int, length: int) -> np.ndarray:
    """Numbers in [0, 1) for each row and position, from a generator of its own for each prompt and sample."""
    keys = [(seed, prompt, sample) for prompt in picked for sample in range(samples)]
    return np.stack([np.random.default_rng(key).random(length) for key in keys])


def _complete(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    rows: list[Completion],
    draws: np.ndarray,
    max_new_tokens: int,
    stop_ids: frozenset[int],
    choice: _Choice,
) -> None:
    """Fill `rows` (prompts times samples, in order)."""
    device = model.head_weight.device
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    slots = min(int(lengths.max()) + max_new_tokens, model.config.context)
    cache = Cache(model.config, len(prompts), slots, device)
    logits_BV = _prefill(model, prompts, lengths, cache)
    samples = len(rows) // len(prompts)
    if samples > 1:
        spread = torch.arange(len(prompts), device=device).repeat_interleave(samples)
        cache.select(spread)
        logits_BV, lengths = logits_BV[spread], lengths[spread]
    random_BT = torch.from_numpy(draws).to(device)
    alive = list(rows)
    for step in range(max_new_tokens):
        chosen_B, logprob_B = _choose(logits_BV, random_BT[:, step], choice)
        _record(alive, chosen_B, logprob_B, stop_ids)
        ended = [row.finished or length + step >= slots for row, length in zip(alive, lengths.tolist(), strict=True)]
        if all(ended) or step + 1 == max_new_tokens:
            return
        if sum(ended) >= SHRINK * len(ended):
            keep = torch.tensor([i for i, over in enumerate(ended) if not over], device=device)
            alive = [row for row, over in zip(alive, ended, strict=True) if not over]
            cache.select(keep)
            chosen_B, lengths, random_BT = chosen_B[keep], lengths[keep], random_BT[keep]
        place_B1 = (lengths + step).clamp_max(slots - 1)[:, None]
        logits_BV = model(chosen_B[:, None], cache=cache, positions=place_B1)[:, 0]


def _prefill(model: Transformer, prompts: Sequence[Sequence[int]], lengths: Tensor, cache: Cache) -> Tensor:
    """Read the prompts into the cache; returns the logits after each one's last token [B, V]."""
    longest = int(lengths.max())
    padded = torch.tensor([[*prompt, *[0] * (longest - len(prompt))] for prompt in prompts], device=lengths.device)
    hidden_BTD = model.hidden(padded, cache=cache)
    last_BD = hidden_BTD[torch.arange(len(prompts), device=lengths.device), lengths - 1]
    return model.logits(last_BD)


def _choose(logits_BV: Tensor, random_B: Tensor, choice: _Choice) -> tuple[Tensor, Tensor]:
    logits_BV = logits_BV.float()
    if choice.temperature == 0:
        chosen_B = logits_BV.argmax(dim=1)
    else:
        logits_BV = logits_BV / choice.temperature
        weights_BV = _truncate(logits_BV, choice).softmax(dim=1).double()
        edges_BV = weights_BV.cumsum(dim=1)
        target_B1 = (random_B * edges_BV[:, -1])[:, None]
        chosen_B = torch.searchsorted(edges_BV, target_B1, right=True)[:, 0].clamp_max(logits_BV.shape[1] - 1)
    logprob_B = logits_BV.gather(1, chosen_B[:, None])[:, 0] - logits_BV.logsumexp(dim=1)
    return chosen_B, logprob_B


def _truncate(logits_BV: Tensor, choice: _Choice) -> Tensor:
    """Set to minus infinity what is outside the `top_k` most likely tokens or the nucleus `top_p`."""
    if choice.top_k:
        least_B1 = logits_BV.topk(min(choice.top_k, logits_BV.shape[1]), dim=1).values[:, -1:]
        logits_BV = logits_BV.masked_fill(logits_BV < least_B1, float("-inf"))
    if choice.top_p < 1:
        ordered_BV, index_BV = logits_BV.sort(dim=1, descending=True, stable=True)
        share_BV = ordered_BV.softmax(dim=1)
        outside_BV = share_BV.cumsum(dim=1) - share_BV >= choice.top_p
        logits_BV = logits_BV.masked_fill(torch.zeros_like(outside_BV).scatter(1, index_BV, outside_BV), float("-inf"))
    return logits_BV


def _record(alive: list[Completion], chosen_B: Tensor, logprob_B: Tensor, stop_ids: frozenset[int]) -> None:
    for row, token, logprob in zip(alive, chosen_B.tolist(), logprob_B.tolist(), strict=True):
        if not row.finished:
            row.tokens.append(token)
            row.logprobs.append(logprob)
            row.finished = token in stop_ids

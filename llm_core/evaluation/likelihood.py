"""How likely a model finds given continuations: the ground under multiple choice and cloze."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from llm_core.model.transformer import Transformer

BATCH_TOKENS = 8192


@dataclass(frozen=True, slots=True)
class Continuation:
    """Log-probability in nats of a continuation, and whether each of its tokens was the likeliest."""

    logprob: float
    greedy: bool


@torch.inference_mode()
def continuations(model: Transformer, requests: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[Continuation]:
    """One result for each (context, continuation) of token ids, in order.

    A context is cut on its left to fit the model's context; it must not be empty, and the continuation must fit.
    Requests are batched by length; padding stands on the right and changes nothing.
    """
    room = model.config.context
    rows = [([*context, *continuation][-room - 1 :], len(continuation)) for context, continuation in requests]
    order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]))
    results: dict[int, Continuation] = {}
    for start, stop in _batches([len(rows[i][0]) for i in order]):
        picked = order[start:stop]
        for i, result in zip(picked, _score(model, [rows[i] for i in picked]), strict=True):
            results[i] = result
    return [results[i] for i in range(len(rows))]


def _batches(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """Ranges of rising lengths whose padded size stays within the budget."""
    cuts, start = [], 0
    for stop in range(1, len(lengths) + 1):
        if stop == len(lengths) or (stop + 1 - start) * lengths[stop] > BATCH_TOKENS:
            cuts.append((start, stop))
            start = stop
    return cuts


def _score(model: Transformer, rows: Sequence[tuple[list[int], int]]) -> list[Continuation]:
    device, longest = model.head_weight.device, max(len(tokens) for tokens, _ in rows)
    tokens_BT = torch.zeros(len(rows), longest, dtype=torch.long)
    wanted_BT = torch.zeros(len(rows), longest - 1, dtype=torch.bool)
    for b, (tokens, scored) in enumerate(rows):
        tokens_BT[b, : len(tokens)] = torch.tensor(tokens)
        wanted_BT[b, len(tokens) - 1 - scored : len(tokens) - 1] = True
    hidden_BTD = model.hidden(tokens_BT[:, :-1].to(device))
    logits_NV = model.logits(hidden_BTD[wanted_BT.to(device)]).float()
    targets_N = tokens_BT[:, 1:][wanted_BT].to(device)
    logprob_N = logits_NV.gather(1, targets_N[:, None])[:, 0] - logits_NV.logsumexp(1)
    likeliest_N = logits_NV.argmax(1) == targets_N
    counts = [scored for _, scored in rows]
    return [
        Continuation(float(logprobs.sum()), bool(likeliest.all()))
        for logprobs, likeliest in zip(torch.split(logprob_N, counts), torch.split(likeliest_N, counts), strict=True)
    ]

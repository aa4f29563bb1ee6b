"""How likely a model finds given continuations: the ground under multiple choice, cloze and perplexity.

Notable: requests that begin alike are computed together (prefixes.py), batches hold rows of like length, and the head
is applied only where a continuation is scored. That is most of the work where the vocabulary is large.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from llm_core.contract import BadInput
from llm_core.model.decoder import Decoder
from llm_core.model.prefixes import Tree, flat_hidden, grow
from llm_core.model.transformer import Transformer

BATCH_TOKENS = 1024  # what stays in a core's cache
PADDING = 1.25
"""Length of a batch's longest row over its shortest, at most."""
MASK_CELLS = 1 << 23
"""Cells of a batch's attention mask, at most."""
LOGITS_AT_ONCE = 1 << 23
"""Logits held at once, at most."""


@dataclass(frozen=True, slots=True)
class Continuation:
    """Log-probability in nats of a continuation, and whether each of its tokens was the likeliest."""

    logprob: float
    greedy: bool


Request = tuple[Sequence[int], Sequence[int]]


@torch.inference_mode()
def continuations(model: Transformer, requests: Sequence[Request]) -> list[Continuation]:
    """One result for each (context, continuation) of token ids, in order.

    A context is cut on its left to fit the model's context; of a continuation that does not fit, each window of tokens
    is scored after the one before it. An empty continuation has log-probability 0. Raises `BadInput` if a context is
    empty.
    """
    room = model.config.context
    owners: list[int] = []
    inputs: list[list[int]] = []
    targets: list[list[int]] = []
    for number, (context, continuation) in enumerate(requests):
        if not context:
            raise BadInput(f"request {number}: nothing stands before what is to be scored; begin with the end token")
        for start in range(0, len(continuation), room):
            scored = continuation[start : start + room]
            whole = [*context, *continuation[:start], *scored][-room - 1 :]
            owners.append(number)
            inputs.append(whole[:-1])
            targets.append(whole[len(whole) - len(scored) :])
    results = [Continuation(0.0, True)] * len(requests)
    decoder = Decoder(model)
    for batch in _batches(grow(inputs)):
        for member, found in _score(decoder, batch, targets):
            before = results[owners[member]]
            results[owners[member]] = Continuation(before.logprob + found.logprob, before.greedy and found.greedy)
    return results


def _batches(trees: Sequence[Tree]) -> list[list[Tree]]:
    """Rows of like length whose padded size stays within the budget; plain rows apart, as they need no mask."""
    batches: list[list[Tree]] = []
    for plain in (True, False):
        chosen = sorted((t for t in trees if t.plain == plain), key=lambda t: len(t.tokens))
        batch: list[Tree] = []
        for tree in chosen:
            width = len(tree.tokens)
            full = (len(batch) + 1) * width > BATCH_TOKENS or (not plain and (len(batch) + 1) * width**2 > MASK_CELLS)
            if batch and (full or width > PADDING * len(batch[0].tokens) + 2):
                batches.append(batch)
                batch = []
            batch.append(tree)
        batches += [batch] if batch else []
    return batches


def _score(decoder: Decoder, trees: Sequence[Tree], targets: Sequence[Sequence[int]]) -> list[tuple[int, Continuation]]:
    """(number of the request, result) for every member of the trees."""
    hidden_ND = flat_hidden(decoder, trees)
    places: list[int] = []
    wanted: list[int] = []
    members: list[tuple[int, int]] = []
    start = 0
    for tree in trees:
        for member, path in zip(tree.members, tree.paths, strict=True):
            scored = len(targets[member])
            places += [start + place for place in path[len(path) - scored :]]
            wanted += targets[member]
            members.append((member, scored))
        start += len(tree.tokens)
    logprob_N, likeliest_N = _of_tokens(decoder, hidden_ND, np.array(places), np.array(wanted))
    stops = np.cumsum([scored for _, scored in members])
    found = []
    for (member, scored), stop in zip(members, stops.tolist(), strict=True):
        part = slice(stop - scored, stop)
        found.append((member, Continuation(float(logprob_N[part].sum()), bool(likeliest_N[part].all()))))
    return found


def _of_tokens(
    decoder: Decoder, hidden_ND: Tensor, places: np.ndarray, wanted: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Log-probability of each wanted token after its place, and whether it is the likeliest: two arrays [n].

    The head is applied once to a place, however many tokens are wanted there.
    """
    device = hidden_ND.device
    distinct, which = np.unique(places, return_inverse=True)
    order = np.argsort(which, kind="stable")
    which, ordered = which[order], torch.from_numpy(wanted[order]).to(device)
    rows = max(1, LOGITS_AT_ONCE // decoder.config.vocab_size)
    logprobs, likeliest = np.empty(len(places)), np.empty(len(places), dtype=np.bool_)
    for start in range(0, len(distinct), rows):
        chosen = torch.from_numpy(distinct[start : start + rows]).to(device)
        logits_MV = decoder.logits(hidden_ND[chosen])
        first, stop = np.searchsorted(which, [start, start + rows])
        at = torch.from_numpy(which[first:stop] - start).to(device)
        scores = logits_MV[at, ordered[first:stop]]
        best_M, spread_M = _best_and_spread(logits_MV)
        logprobs[order[first:stop]] = (scores.double() - spread_M[at]).cpu().numpy()
        likeliest[order[first:stop]] = (best_M[at] == ordered[first:stop]).cpu().numpy()
    return logprobs, likeliest


def _best_and_spread(logits_MV: Tensor) -> tuple[Tensor, Tensor]:
    """The likeliest token [M] and log of the sum of exponentials [M] of each row, which is overwritten."""
    top = logits_MV.max(dim=1)
    logits_MV -= top.values[:, None]
    return top.indices, logits_MV.exp_().sum(dim=1).log().double() + top.values.double()

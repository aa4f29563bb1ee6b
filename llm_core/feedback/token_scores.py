"""Log-probabilities of given answers, with what is watched beside them: entropy, and tokens that were the likeliest."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from llm_core.model.prefixes import grow, hidden
from llm_core.model.transformer import Transformer

ENOUGH_SAVED = 0.75
"""Sequences are laid into trees if so large a share of the places, padding included, or less is left."""


@dataclass(frozen=True, slots=True)
class TokenScores:
    """Of each token given the ones before it (B, T), 0 outside the mask. Only the log-probabilities have gradients."""

    logprobs_BT: Tensor
    """In nats."""
    entropy_BT: Tensor
    """Of the distribution that the token was drawn from, in nats."""
    likeliest_BT: Tensor
    """1 where no other token was likelier."""


def token_scores(model: Transformer, tokens_BT: Tensor, mask_BT: Tensor, temperature: float = 1.0) -> TokenScores:
    """Scores of the tokens that `mask_BT` names, of sequences padded on the right.

    The logits are divided by the temperature, as when sampling. Only scored positions pass through the output head, and
    what several sequences begin with is computed once where that saves enough.
    """
    wanted_BT = mask_BT[:, 1:].bool()
    logits_NV = model.logits(_before(model, tokens_BT, wanted_BT)).float() / temperature
    targets_N = tokens_BT[:, 1:][wanted_BT]
    normaliser_N = logits_NV.logsumexp(dim=1)
    logprobs_N = logits_NV.gather(1, targets_N[:, None])[:, 0] - normaliser_N
    with torch.no_grad():
        share_NV = (logits_NV - normaliser_N[:, None]).exp()
        entropy_N = normaliser_N - (share_NV * logits_NV).sum(1)
        likeliest_N = (logits_NV.argmax(1) == targets_N).to(logprobs_N.dtype)
    where_BT = F.pad(wanted_BT, (1, 0))
    zeros_BT = torch.zeros(tokens_BT.shape, dtype=logprobs_N.dtype, device=tokens_BT.device)
    return TokenScores(*(zeros_BT.masked_scatter(where_BT, part) for part in (logprobs_N, entropy_N, likeliest_N)))


def _before(model: Transformer, tokens_BT: Tensor, wanted_BT: Tensor) -> Tensor:
    """Vectors [N, D] of the places before the wanted tokens; `wanted_BT` [B, T - 1] begins with the second token."""
    wanted = wanted_BT.cpu().numpy()
    ends = np.where(wanted.any(1), wanted.shape[1] - wanted[:, ::-1].argmax(1), 1)
    trees = grow([row[:end] for row, end in zip(tokens_BT.tolist(), ends.tolist(), strict=True)])
    width = max(len(tree.tokens) for tree in trees)
    if len(trees) * width > ENOUGH_SAVED * len(wanted) * int(ends.max()):
        return model.hidden(tokens_BT)[:, :-1][wanted_BT]
    paths: list[np.ndarray] = [np.empty(0)] * len(wanted)
    for row, tree in enumerate(trees):
        for member, path in zip(tree.members, tree.paths, strict=True):
            paths[member] = row * width + np.array(path)
    places = np.concatenate([path[wanted[row, : len(path)]] for row, path in enumerate(paths)])
    hidden_BTD = hidden(model, trees)
    return hidden_BTD.flatten(0, 1)[torch.from_numpy(places).to(hidden_BTD.device)]

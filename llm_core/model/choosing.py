"""Picking the next token of each row: repetition penalty, temperature, top-k, top-p, one random number a row.

The order is that of `transformers`: penalty, temperature, top-k, top-p. Tensors are [rows B, vocabulary V]; a setting
that all rows share is a number, else a column [B, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from llm_core.contract import BadInput

PIECE = 64
"""Neighbouring tokens whose weights are summed first when a token is drawn."""


@dataclass(frozen=True, slots=True)
class Choice:
    """How one row's tokens are picked."""

    temperature: float = 1.0
    """0: the most likely token."""
    top_k: int = 0
    """Only so many most likely tokens; 0: all."""
    top_p: float = 1.0
    """Only the smallest set of most likely tokens whose share reaches this, above 0 to 1."""
    repetition_penalty: float = 1.0
    """Scores of tokens already in the text are divided (below 0: multiplied) by this (Keskar et al. 2019)."""

    def check(self) -> None:
        """Raises `BadInput` for a value that means nothing."""
        if not 0 <= self.temperature < float("inf"):
            raise BadInput(f"temperature: {self.temperature} must be at least 0 and finite")
        if self.top_k < 0:
            raise BadInput(f"top_k: {self.top_k} must be at least 0, which leaves all tokens")
        if not 0 < self.top_p <= 1:
            raise BadInput(f"top_p: {self.top_p} must be above 0 and at most 1")
        if not 0 < self.repetition_penalty < float("inf"):
            raise BadInput(f"repetition_penalty: {self.repetition_penalty} must be above 0 and finite")


class Picker:
    """The choices of a batch's rows, made ready once and used until the batch changes."""

    def __init__(self, choices: Sequence[Choice], device: torch.device) -> None:
        self.device = device
        self.penalised = any(choice.repetition_penalty != 1 for choice in choices)
        self.penalty = self._column([choice.repetition_penalty for choice in choices])
        self.temperature = self._column([choice.temperature or 1.0 for choice in choices])
        greedy = [choice.temperature == 0 for choice in choices]
        self.all_greedy, self.any_greedy = all(greedy), any(greedy)
        self.greedy = torch.tensor(greedy, device=device)
        self.top_k = torch.tensor([choice.top_k for choice in choices], device=device)
        self.most_k = max(choice.top_k for choice in choices)
        self.all_k = min(choice.top_k for choice in choices) > 0
        self.top_p = torch.tensor([[choice.top_p] for choice in choices], device=device)
        self.any_p = any(choice.top_p < 1 for choice in choices)

    def _column(self, values: Sequence[float]) -> float | Tensor:
        if len(set(values)) == 1:
            return values[0]
        return torch.tensor(values, device=self.device)[:, None]

    def scores(self, logits_BV: Tensor) -> Tensor:
        """Scores whose softmax is the model's distribution at the rows' temperatures."""
        if isinstance(self.temperature, float) and self.temperature == 1:
            return logits_BV
        return logits_BV / self.temperature

    def pick(self, logits_BV: Tensor, seen_BV: Tensor | None, random_B: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens [B] and their log-probabilities under the model at the rows' temperatures [B].

        `seen_BV` is true for the tokens of a row's text so far, needed where a row has a penalty; `random_B`: numbers
        in [0, 1). Raises `BadInput` for logits that are no numbers.
        """
        plain_BV = self.scores(logits_BV)
        scores_BV = plain_BV
        if self.penalised and seen_BV is not None:
            factor_BV = torch.where(logits_BV < 0, self.penalty, 1 / self.penalty)
            scores_BV = self.scores(torch.where(seen_BV, logits_BV * factor_BV, logits_BV))
        most_B1 = plain_BV.amax(dim=1, keepdim=True)
        weights_BV = (plain_BV - most_B1).exp_()
        pieces_BP = _pieces(weights_BV).sum(-1)
        total_B = pieces_BP.sum(-1)
        if not bool(torch.isfinite(total_B).all()):
            raise BadInput("model: its logits are not finite numbers, so there is nothing to sample from")
        if self.all_greedy:
            chosen_B = scores_BV.argmax(dim=1)
        else:
            if scores_BV is not plain_BV or self.most_k or self.any_p:
                scores_BV = self.truncated(scores_BV)
                weights_BV = (scores_BV - scores_BV.amax(dim=1, keepdim=True)).exp_()
                pieces_BP = _pieces(weights_BV).sum(-1)
            chosen_B = _draw(weights_BV, pieces_BP, random_B)
            if self.any_greedy:
                chosen_B = torch.where(self.greedy, scores_BV.argmax(dim=1), chosen_B)
        logprob_B = plain_BV.gather(1, chosen_B[:, None])[:, 0] - most_B1[:, 0] - total_B.log()
        return chosen_B, logprob_B

    def truncated(self, scores_BV: Tensor) -> Tensor:
        """Minus infinity outside the top k and the nucleus of each row."""
        if self.most_k:
            scores_BV = self._only_top_k(scores_BV)
        if self.any_p:
            ordered_BV, index_BV = scores_BV.sort(dim=1, descending=True, stable=True)
            share_BV = ordered_BV.softmax(dim=1)
            outside_BV = share_BV.cumsum(dim=1) - share_BV >= self.top_p
            outside_BV[:, 0] = False
            outside_BV &= self.top_p < 1
            scores_BV = scores_BV.masked_fill(torch.zeros_like(outside_BV).scatter(1, index_BV, outside_BV), -torch.inf)
        return scores_BV

    def _only_top_k(self, scores_BV: Tensor) -> Tensor:
        size = scores_BV.shape[1]
        best_BK = scores_BV.topk(min(self.most_k, size), dim=1).values
        least_B1 = best_BK.gather(1, (self.top_k[:, None] - 1).clamp(0, best_BK.shape[1] - 1))
        if not self.all_k:
            least_B1 = least_B1.masked_fill(self.top_k[:, None] == 0, -torch.inf)
        return scores_BV.masked_fill(scores_BV < least_B1, -torch.inf)


def _pieces(weights_BV: Tensor) -> Tensor:
    """[B, V / PIECE, PIECE], with zeros behind the last token."""
    spare = -weights_BV.shape[1] % PIECE
    padded = F.pad(weights_BV, (0, spare)) if spare else weights_BV
    return padded.view(len(padded), -1, PIECE)


def _draw(weights_BV: Tensor, pieces_BP: Tensor, random_B: Tensor) -> Tensor:
    """The token at which the running sum of a row's weights passes `random_B` of their total.

    First the piece is found, then the token in it: a running sum over the whole vocabulary would cost more than the
    rest, and in single precision it would lose the small weights.
    """
    edges_BP = pieces_BP.double().cumsum(dim=1)
    target_B1 = (random_B * edges_BP[:, -1])[:, None]
    piece_B1 = torch.searchsorted(edges_BP, target_B1, right=True).clamp_max(edges_BP.shape[1] - 1)
    before_B1 = edges_BP.gather(1, piece_B1) - pieces_BP.gather(1, piece_B1).double()
    inside_BK = _pieces(weights_BV).take_along_dim(piece_B1[:, :, None], dim=1)[:, 0].double()
    running_BK = inside_BK.cumsum(dim=1)
    place_B1 = torch.searchsorted(running_BK, (target_B1 - before_B1).clamp_min(0), right=True)
    # rounding may step past the piece's last token that has any weight
    last_B1 = PIECE - 1 - (inside_BK.flip(1) > 0).long().argmax(dim=1, keepdim=True)
    return (piece_B1 * PIECE + torch.minimum(place_B1, last_B1))[:, 0]

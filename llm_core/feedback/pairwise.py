"""DPO on batches of pairs: objective, what is watched, and the check that the policy starts at the reference."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from llm_core.feedback.objectives import PreferenceForm, dpo_loss, length_discounted
from llm_core.feedback.preferences import EncodedPair, PairBatch, collate, in_order
from llm_core.feedback.token_scores import TokenScores, token_scores
from llm_core.model.transformer import Transformer
from llm_core.train.gradients import Loss

START_TOLERANCE = 1e-3
"""Nats: batches are padded differently when the reference is computed."""


@dataclass(frozen=True, slots=True)
class Pairwise:
    """The form of the loss; see `dpo_loss` and `length_discounted`."""

    form: PreferenceForm = "sigmoid"
    beta: float = 0.1
    label_smoothing: float = 0.0
    sft_weight: float = 0.0
    ld_alpha: float = 1.0

    @torch.no_grad()
    def known(self, model: Transformer, pairs: Sequence[EncodedPair], size: int) -> Tensor:
        """The model's log-probabilities of all answers, (2, pairs): chosen, rejected; `size` pairs at a time."""
        model.eval()
        device = model.head_weight.device
        parts = [self.answers(model, collate(pairs, rows).to(device))[0] for rows in in_order(len(pairs), size)]
        return torch.cat(parts, dim=1)

    def answers(self, model: Transformer, batch: PairBatch) -> tuple[Tensor, TokenScores]:
        """Log-probabilities of a batch's answers, (2, P), and those of their tokens."""
        scores = token_scores(model, batch.tokens_BT, batch.mask_BT)
        lengths_P2 = batch.mask_BT.sum(-1).view(2, -1)
        others_B = lengths_P2.flip(0).flatten()
        return length_discounted(scores.logprobs_BT, batch.mask_BT, others_B, self.ld_alpha).view(2, -1), scores

    def loss(self, ours: Tensor, scores: TokenScores, known: Tensor, batch: PairBatch) -> Tensor:
        """Mean loss of pairs from what `answers` gave and the reference's log-probabilities (2, P)."""
        chosen_lengths_P, rejected_lengths_P = batch.mask_BT.sum(-1).view(2, -1)
        loss = dpo_loss(
            ours[0], ours[1], known[0], known[1],
            beta=self.beta,
            form=self.form,
            label_smoothing=self.label_smoothing,
            chosen_lengths_P=chosen_lengths_P,
            rejected_lengths_P=rejected_lengths_P,
        )  # fmt: skip
        if self.sft_weight:  # of whole answers, whatever `ld_alpha` says
            chosen_P = (scores.logprobs_BT * batch.mask_BT).sum(-1)[: len(chosen_lengths_P)]
            loss = loss - self.sft_weight * chosen_P.sum() / chosen_lengths_P.sum()
        return loss

    def objective(self, known: Tensor) -> partial[Loss]:
        """The loop's objective, given the reference's log-probabilities of all pairs."""
        return partial(self._objective, known)

    def _objective(self, known: Tensor, model: Transformer, batch: PairBatch) -> Loss:
        ours, scores = self.answers(model, batch)
        loss = self.loss(ours, scores, known[:, batch.rows_P], batch)
        count = ours.shape[1]
        told = self.figures(ours, known[:, batch.rows_P]) | _token_figures(scores, batch)
        return Loss(loss * count, count, told, batch.tokens_BT.numel())

    @torch.no_grad()
    def figures(self, ours: Tensor, known: Tensor) -> dict[str, float]:
        """TRL's figures: implicit rewards, their margin, and how likely the answers themselves are."""
        rewards = self.beta * (ours - known)
        margin_P = rewards[0] - rewards[1]
        return {
            "reward_chosen": float(rewards[0].mean()),
            "reward_rejected": float(rewards[1].mean()),
            "margin": float(margin_P.mean()),
            "accuracy": float((margin_P > 0).float().mean()),
            "logprob_chosen": float(ours[0].mean()),
            "logprob_rejected": float(ours[1].mean()),
        }

    @torch.no_grad()
    def check_start(self, policy: Transformer, known: Tensor, batch: PairBatch) -> None:
        """Raises `RuntimeError` unless the margin is 0 and the plain loss ln 2, as they are at the reference."""
        loss = self._objective(known, policy, batch)
        margin, value = loss.figures["margin"] / self.beta, float(loss.total) / loss.count
        plain = self.form in ("sigmoid", "sigmoid_norm") and not self.sft_weight
        if abs(margin) > START_TOLERANCE or (plain and abs(value - math.log(2)) > START_TOLERANCE):
            raise RuntimeError(
                f"the policy does not start at the reference: margin {margin:.3g} nats (0 expected), loss {value:.5f}"
            )

    def judge(self, model: Transformer, pairs: Sequence[EncodedPair], known: Tensor, size: int) -> dict[str, float]:
        """Loss and figures on held-out pairs, `size` at a time."""
        losses, parts = 0.0, []
        for rows in in_order(len(pairs), size):
            batch = collate(pairs, rows).to(known.device)
            ours, scores = self.answers(model, batch)
            losses += float(self.loss(ours, scores, known[:, batch.rows_P], batch)) * len(rows)
            parts.append(ours)
        return self.figures(torch.cat(parts, dim=1), known) | {"loss": losses / len(pairs)}


def _token_figures(scores: TokenScores, batch: PairBatch) -> dict[str, float]:
    tokens = batch.mask_BT.sum()
    chosen, rejected = batch.mask_BT.sum(-1).view(2, -1).mean(-1).tolist()
    return {
        "entropy": float(scores.entropy_BT.sum() / tokens),
        "token_accuracy": float(scores.likeliest_BT.sum() / tokens),
        "tokens_chosen": chosen,
        "tokens_rejected": rejected,
    }

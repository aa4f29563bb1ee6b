"""PPO's value network: what the answer will be worth, foretold after each of its tokens.

A separate copy of the reward model, its heads mixed into one, as in TRL and summarize_from_feedback_details:
the score of a sequence that is not finished yet is a good first guess at its end. Where the heads read the answer's
likelihood, the value reads that of the part that is there.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from llm_core.feedback.rollout import without_dropout
from llm_core.feedback.scorer import RewardModel
from llm_core.feedback.token_scores import token_scores


class Critic(nn.Module):
    """Values (B, T) of sequences padded on the right: at each place what follows it is expected to bring."""

    def __init__(self, reward: RewardModel) -> None:
        super().__init__()
        self.backbone = without_dropout(reward.backbone)
        self.reads_likelihood = bool(reward.opening)
        if not self.backbone.config.tied and not self.reads_likelihood:
            self.backbone.lm_head.requires_grad_(False)
        scale_H = reward.mix_H * reward.gain_H
        self.weight_D = nn.Parameter((scale_H @ reward.weight_HD).detach().clone())
        self.factor = nn.Parameter((scale_H @ reward.factor_H).detach().clone(), requires_grad=self.reads_likelihood)
        self.bias = nn.Parameter((reward.mix_H @ reward.bias_H).detach().clone())

    def forward(self, tokens_BT: Tensor, mask_BT: Tensor) -> Tensor:
        """`mask_BT` names the answers' tokens."""
        values_BT: Tensor = self.backbone.hidden(tokens_BT) @ self.weight_D + self.bias
        if self.reads_likelihood:
            scores = token_scores(self.backbone, tokens_BT, mask_BT)
            values_BT = values_BT + self.factor * torch.cumsum(scores.logprobs_BT, dim=1)
        return values_BT

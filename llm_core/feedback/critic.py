"""PPO's value network: what the answer will be worth, foretold after each of its tokens.

A separate copy of the reward model, head, gain and bias included, as in TRL and summarize_from_feedback_details: the
score of a sequence that is not finished yet is a good first guess at its end.
"""

from __future__ import annotations

from torch import Tensor, nn

from llm_core.feedback.rollout import without_dropout
from llm_core.feedback.scorer import RewardModel


class Critic(nn.Module):
    """Values (B, T) of sequences padded on the right: at each place what follows it is expected to bring."""

    gain: Tensor
    bias: Tensor

    def __init__(self, reward: RewardModel) -> None:
        super().__init__()
        self.backbone = without_dropout(reward.backbone)
        if not self.backbone.config.tied:
            self.backbone.lm_head.requires_grad_(False)
        self.weight = nn.Parameter(reward.weight.detach().clone())
        self.register_buffer("gain", reward.gain.detach().clone())
        self.register_buffer("bias", reward.bias.detach().clone())

    def forward(self, tokens_BT: Tensor) -> Tensor:
        values_BT: Tensor = self.gain * (self.backbone.hidden(tokens_BT) @ self.weight) + self.bias
        return values_BT

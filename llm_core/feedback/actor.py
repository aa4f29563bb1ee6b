"""What online tuning trains, with the rollout under way as buffers, so that the loop's resume point holds it all.

Shapes: B answers of a rollout, N of one pass, T tokens of prompt and answer, A answer tokens (aligned on the left).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from llm_core.feedback.critic import Critic
from llm_core.feedback.objectives import POLICY_FORMS, PolicyForm
from llm_core.feedback.worth import Sample
from llm_core.model.transformer import Transformer


@dataclass(frozen=True, slots=True)
class OnlineOptions:
    """See `settings.align`: OnlineSettings, GrpoSettings and PpoSettings."""

    method: Literal["grpo", "ppo"] = "grpo"
    seed: int = 0
    prompts: int = 16
    samples: int = 8
    epochs: int = 1
    minibatches: int = 1
    passes: int = 1
    temperature: float = 1.0
    max_new_tokens: int = 24
    kl_weight: float = 0.05
    kl_target: float | None = None
    kl_horizon: int = 10_000
    form: PolicyForm = field(default_factory=lambda: POLICY_FORMS["grpo"])
    kl: Literal["k3", "k3_corrected", "reward"] = "k3"
    drop_flat_groups: bool = False
    drop_cut_answers: bool = False
    value_clip: float = 0.2
    value_weight: float = 0.1
    gamma: float = 1.0
    lam: float = 0.95
    whiten_rewards: bool = False

    @property
    def rows(self) -> int:
        """Answers of a rollout."""
        return self.prompts * self.samples

    @property
    def parts(self) -> int:
        """Passes that a rollout is gone through in."""
        return self.epochs * self.minibatches * self.passes


@dataclass(frozen=True, slots=True)
class Place:
    """Part `part` of rollout `rollout`: a pure function of the number of the pass."""

    rollout: int
    part: int


class Actor(nn.Module):
    """What is trained, the policy and for PPO the critic, with the rollout under way."""

    tokens_BT: Tensor
    prompt_B: Tensor
    length_B: Tensor
    mask_BA: Tensor
    old_BA: Tensor
    reference_BA: Tensor
    advantages_BA: Tensor
    returns_BA: Tensor
    values_BA: Tensor
    kl_weight: Tensor
    told: Tensor

    def __init__(
        self, policy: Transformer, critic: Critic | None, options: OnlineOptions, longest: int, told: int
    ) -> None:
        """`longest`: tokens of the longest prompt. `told`: number of figures of a rollout."""
        super().__init__()
        self.policy, self.critic = policy, critic
        rows, answer = options.rows, options.max_new_tokens
        self.register_buffer("tokens_BT", torch.zeros(rows, longest + answer, dtype=torch.long))
        self.register_buffer("prompt_B", torch.zeros(rows, dtype=torch.long))
        self.register_buffer("length_B", torch.zeros(rows, dtype=torch.long))
        for name in ("mask", "old", "reference", "advantages", "returns", "values"):
            self.register_buffer(f"{name}_BA", torch.zeros(rows, answer))
        self.register_buffer("kl_weight", torch.tensor(options.kl_weight, dtype=torch.float64))
        self.register_buffer("told", torch.zeros(told, dtype=torch.float64))
        self.to(policy.head_weight.device)


def write(actor: Actor, samples: Sequence[Sample]) -> Tensor:
    """The samples into the actor's buffers; returns the sampler's log-probabilities (B, A)."""
    tokens = np.zeros(tuple(actor.tokens_BT.shape), dtype=np.int64)
    sampled = np.zeros(tuple(actor.mask_BA.shape), dtype=np.float32)
    mask = np.zeros_like(sampled)
    for row, sample in enumerate(samples):
        sequence, answer = sample.prompt.tokens + sample.tokens, len(sample.tokens)
        tokens[row, : len(sequence)], mask[row, :answer] = sequence, 1.0
        sampled[row, :answer] = sample.logprobs
    actor.tokens_BT.copy_(torch.from_numpy(tokens))
    actor.mask_BA.copy_(torch.from_numpy(mask))
    actor.prompt_B.copy_(torch.tensor([len(sample.prompt.tokens) for sample in samples]))
    actor.length_B.copy_(torch.tensor([len(s.prompt.tokens) + len(s.tokens) for s in samples]))
    return torch.from_numpy(sampled).to(actor.mask_BA.device)


def view(actor: Actor, rows_N: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens (N, T) no longer than needed, mask of the answers (N, T), and the answers' places (N, A)."""
    prompt_N1, length_N1 = actor.prompt_B[rows_N, None], actor.length_B[rows_N, None]
    tokens_NT = actor.tokens_BT[rows_N, : int(length_N1.max())]
    place_T = torch.arange(tokens_NT.shape[1], device=rows_N.device)
    mask_NT = (place_T >= prompt_N1) & (place_T < length_N1)
    return tokens_NT, mask_NT, prompt_N1 + torch.arange(actor.mask_BA.shape[1], device=rows_N.device)

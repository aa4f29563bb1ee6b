"""The losses of feedback tuning, as pure functions of log-probabilities, scores and masks.

There is one preference loss with named forms, and one per-token policy loss with a named ratio, a named surrogate and a
named normaliser: the methods of the literature are combinations of these (GRPO = token ratio, clip, "sequence";
DAPO = "token" and a wider upper clip; Dr.GRPO = "constant" and advantages without a deviation; GSPO = sequence ratio;
CISPO = the cispo surrogate; PPO = "token" with advantages from `gae`). Values and gradients equal those of TRL 1.16,
verl and OpenRLHF on the same numbers.

Shapes: B sequences, T answer tokens, P pairs. Masks are 1.0 (or True) on answer tokens. Log-probabilities are in nats.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

PreferenceForm = Literal["sigmoid", "sigmoid_norm", "hinge", "ipo", "robust"]
Normaliser = Literal["token", "sequence", "sequence_sum", "constant"]
Scale = Literal["group", "batch", "none"]


@dataclass(frozen=True, slots=True)
class PolicyForm:
    """What distinguishes one policy objective from another; `local`: the token mean of each pass by itself."""

    ratio: Literal["token", "sequence"] = "token"
    surrogate: Literal["clip", "cispo"] = "clip"
    normaliser: Normaliser = "token"
    local: bool = False
    clip_low: float = 0.2
    clip_high: float = 0.2
    scale: Scale = "group"


POLICY_FORMS: dict[str, PolicyForm] = {
    "grpo": PolicyForm(normaliser="sequence"),  # 2402.03300
    "dapo": PolicyForm(clip_high=0.28),  # 2503.14476
    "dr_grpo": PolicyForm(normaliser="constant", scale="none"),  # 2503.20783
    "bnpo": PolicyForm(local=True),
    "cispo": PolicyForm(surrogate="cispo", clip_high=5.0),  # 2506.13585
    "gspo": PolicyForm(ratio="sequence", normaliser="sequence", clip_low=3e-4, clip_high=4e-4),  # 2507.18071
    "luspo": PolicyForm(ratio="sequence", normaliser="sequence_sum"),
    "reinforce": PolicyForm(scale="none", clip_low=1.0, clip_high=float("inf")),  # as nanochat: r - mean, no clip
}
"""The group-relative family by name."""


def answer_logprobs(logprobs_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Log-probability of each whole answer, (B,): the sum over its tokens, never the mean."""
    return (logprobs_BT * mask_BT).sum(-1)


def length_discounted(logprobs_BT: Tensor, mask_BT: Tensor, other_lengths_B: Tensor, alpha: float) -> Tensor:
    """Answer log-probabilities whose tokens beyond the other answer's length weigh `alpha` (LD-DPO, 2409.06411)."""
    position_BT = mask_BT.cumsum(-1)
    weight_BT = torch.where(position_BT <= other_lengths_B[:, None], 1.0, alpha)
    return (logprobs_BT * mask_BT * weight_BT).sum(-1)


def dpo_loss(
    policy_chosen_P: Tensor,
    policy_rejected_P: Tensor,
    reference_chosen_P: Tensor,
    reference_rejected_P: Tensor,
    *,
    beta: float = 0.1,
    form: PreferenceForm = "sigmoid",
    label_smoothing: float = 0.0,
    chosen_lengths_P: Tensor | None = None,
    rejected_lengths_P: Tensor | None = None,
    sft_weight: float = 0.0,
) -> Tensor:
    """Direct preference optimisation (2305.18290): the mean over pairs, from the answers' summed log-probabilities.

    `label_smoothing` is the assumed share of wrong votes: the conservative loss in form "sigmoid", the unbiased one in
    "robust" (2403.00409). "ipo" (2310.12036) and "sigmoid_norm" divide each log-ratio by its answer's length and need
    the lengths, as does `sft_weight`, which adds the chosen answers' cross-entropy per token.
    """
    chosen_P, rejected_P = policy_chosen_P - reference_chosen_P, policy_rejected_P - reference_rejected_P
    if form in ("ipo", "sigmoid_norm"):
        chosen_P = chosen_P / _required(chosen_lengths_P, form)
        rejected_P = rejected_P / _required(rejected_lengths_P, form)
    loss = _preference(chosen_P - rejected_P, beta, form, label_smoothing).mean()
    if sft_weight:
        loss = loss - sft_weight * policy_chosen_P.sum() / _required(chosen_lengths_P, "sft_weight").sum()
    return loss


def _preference(margin_P: Tensor, beta: float, form: PreferenceForm, label_smoothing: float) -> Tensor:
    if form == "ipo":
        return (margin_P - 1 / (2 * beta)) ** 2
    scaled_P = beta * margin_P
    if form == "hinge":
        return F.relu(1 - scaled_P)
    right_P, wrong_P = -F.logsigmoid(scaled_P), -F.logsigmoid(-scaled_P)
    if form == "robust":
        return ((1 - label_smoothing) * right_P - label_smoothing * wrong_P) / (1 - 2 * label_smoothing)
    return (1 - label_smoothing) * right_P + label_smoothing * wrong_P


def _required(lengths: Tensor | None, what: str) -> Tensor:
    if lengths is None:
        raise ValueError(f"{what} needs the lengths of the answers")
    return lengths


def reward_loss(chosen_P: Tensor, rejected_P: Tensor, *, margin_P: Tensor | None = None, centre: float = 0.0) -> Tensor:
    """Bradley-Terry loss of scores, mean over pairs: -log sigmoid(chosen - rejected - margin) + centre * (sum)^2.

    `centre` keeps scores near zero (2312.09244); without it their level is free.
    """
    difference_P = chosen_P - rejected_P - (0.0 if margin_P is None else margin_P)
    return -F.logsigmoid(difference_P).mean() + centre * ((chosen_P + rejected_P) ** 2).mean()


def group_advantages(rewards_B: Tensor, group: int, *, scale: Scale = "group") -> Tensor:
    """Rewards of `group` consecutive answers to one prompt, less their mean, over the deviation (n - 1) + 1e-4."""
    centred_NG = rewards_B.view(-1, group) - rewards_B.view(-1, group).mean(1, keepdim=True)
    if scale == "none":
        return centred_NG.flatten()
    deviation = rewards_B.view(-1, group).std(1, keepdim=True) if scale == "group" else rewards_B.std()
    return (centred_NG / (deviation + 1e-4)).flatten()


def policy_loss(
    logprobs_BT: Tensor,
    old_BT: Tensor,
    advantages: Tensor,
    mask_BT: Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float | None = None,
    ceiling: float | None = None,
    ratio: Literal["token", "sequence"] = "token",
    surrogate: Literal["clip", "cispo"] = "clip",
    normaliser: Normaliser = "token",
    denominator: float | None = None,
    reference_BT: Tensor | None = None,
    beta: float = 0.0,
    corrected_kl: bool = False,
) -> Tensor:
    """The per-token policy objective behind PPO and the GRPO family; see the module's text for the combinations.

    `advantages` is (B,) or (B, T). `ceiling` bounds the ratio itself (two-sided clipping). `beta` weighs the KL from
    `reference_BT` (k3 estimator; `corrected_kl` multiplies it by the ratio). `denominator`: see `aggregate`.
    """
    advantages_BT = advantages[:, None] if advantages.dim() == 1 else advantages
    ratio_BT = _ratio(logprobs_BT, old_BT, mask_BT, ratio)
    high = 1 + (clip_low if clip_high is None else clip_high)
    if surrogate == "cispo":
        loss_BT = -ratio_BT.clamp(max=high - 1).detach() * advantages_BT * logprobs_BT
    else:
        bounded_BT = ratio_BT if ceiling is None else ratio_BT.clamp(max=ceiling)
        clipped_BT = ratio_BT.clamp(1 - clip_low, high)
        loss_BT = -torch.minimum(bounded_BT * advantages_BT, clipped_BT * advantages_BT)
    if beta and reference_BT is not None:
        kl_BT = kl_estimate(logprobs_BT, reference_BT, "k3")
        loss_BT = loss_BT + beta * (kl_BT * (logprobs_BT - old_BT).exp() if corrected_kl else kl_BT)
    return aggregate(loss_BT.expand_as(mask_BT), mask_BT, normaliser, denominator)


def _ratio(logprobs_BT: Tensor, old_BT: Tensor, mask_BT: Tensor, kind: Literal["token", "sequence"]) -> Tensor:
    log_ratio_BT = logprobs_BT - old_BT
    if kind == "token":
        return log_ratio_BT.exp()
    mean_B = (log_ratio_BT * mask_BT).sum(-1) / mask_BT.sum(-1).clamp(min=1)
    return mean_B.exp()[:, None]


def aggregate(values_BT: Tensor, mask_BT: Tensor, normaliser: Normaliser, denominator: float | None = None) -> Tensor:
    """One number from per-token values.

    "token": sum over tokens / number of tokens (of the whole global batch if given as `denominator`);
    "sequence": mean over sequences of each one's token mean; "sequence_sum": mean over sequences of each one's sum;
    "constant": sum / `denominator` (default B x T), so that length weighs nothing.
    """
    masked_BT = values_BT * mask_BT
    if normaliser == "token":
        return masked_BT.sum() / (mask_BT.sum().clamp(min=1) if denominator is None else denominator)
    if normaliser == "constant":
        return masked_BT.sum() / (mask_BT.numel() if denominator is None else denominator)
    sums_B = masked_BT.sum(-1)
    if normaliser == "sequence":
        sums_B = sums_B / mask_BT.sum(-1).clamp(min=1)
    return sums_B.sum() / (len(sums_B) if denominator is None else denominator)


def kl_estimate(logprobs_BT: Tensor, reference_BT: Tensor, kind: Literal["k1", "k2", "k3"] = "k1") -> Tensor:
    """Per-token estimates of KL(policy || reference) on the policy's own samples (Schulman, "Approximating KL")."""
    difference_BT = logprobs_BT - reference_BT
    if kind == "k1":
        return difference_BT
    if kind == "k2":
        return difference_BT**2 / 2
    return torch.exp(-difference_BT) + difference_BT - 1


def token_rewards(
    score_B: Tensor, logprobs_BT: Tensor, reference_BT: Tensor, mask_BT: Tensor, *, kl_weight: float
) -> Tensor:
    """PPO's reward per token: minus the weighted KL, and the answer's score on its last token (1909.08593)."""
    rewards_BT = -kl_weight * (logprobs_BT - reference_BT) * mask_BT
    last_B = mask_BT.sum(-1).long() - 1
    return rewards_BT.scatter_add(1, last_B[:, None], score_B[:, None].to(rewards_BT.dtype))


def whiten(values_BT: Tensor, mask_BT: Tensor, *, shift_mean: bool = True) -> Tensor:
    """Values over their deviation under the mask (unbiased variance + 1e-8), less their mean unless told not to."""
    count = mask_BT.sum()
    mean = (values_BT * mask_BT).sum() / count
    variance = ((values_BT - mean) ** 2 * mask_BT).sum() / count * count / (count - 1)
    whitened_BT = (values_BT - mean) * torch.rsqrt(variance + 1e-8)
    return whitened_BT if shift_mean else whitened_BT + mean


def gae(
    rewards_BT: Tensor, values_BT: Tensor, mask_BT: Tensor, *, gamma: float = 1.0, lam: float = 0.95
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (1506.02438): (advantages, returns), both (B, T), zero outside the mask.

    The last answer token of a sequence is followed by value 0.
    """
    advantages: list[Tensor] = []
    running_B = next_value_B = torch.zeros_like(values_BT[:, 0])
    for t in reversed(range(values_BT.shape[1])):
        delta_B = rewards_BT[:, t] + gamma * next_value_B - values_BT[:, t]
        running_B = (delta_B + gamma * lam * running_B) * mask_BT[:, t]
        next_value_B = values_BT[:, t] * mask_BT[:, t]
        advantages.append(running_B)
    advantages_BT = torch.stack(advantages[::-1], dim=1)
    return advantages_BT, (advantages_BT + values_BT) * mask_BT


def value_loss(
    values_BT: Tensor,
    old_BT: Tensor,
    returns_BT: Tensor,
    mask_BT: Tensor,
    *,
    clip: float | None = 0.2,
    normaliser: Normaliser = "token",
) -> Tensor:
    """Half the squared error of the value function, the larger of plain and clipped (PPO, 1707.06347)."""
    errors_BT = (values_BT - returns_BT) ** 2
    if clip is not None:
        clipped_BT = old_BT + (values_BT - old_BT).clamp(-clip, clip)
        errors_BT = torch.maximum(errors_BT, (clipped_BT - returns_BT) ** 2)
    return 0.5 * aggregate(errors_BT, mask_BT, normaliser)


def adapted_kl_weight(weight: float, observed: float, *, target: float, horizon: int, batch: int) -> float:
    """The next KL weight of adaptive PPO (1909.08593): error against `target` nats clipped to 20%, over `horizon`."""
    error = min(max(observed / target - 1, -0.2), 0.2)
    return weight * (1 + error * batch / horizon)

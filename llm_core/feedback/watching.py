"""The figures of online tuning: those that TRL logs of PPO and GRPO, KL in nats per answer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from llm_core.feedback.objectives import PolicyForm
from llm_core.feedback.worth import Sample, Worth

ROLLOUT_FIGURES = (
    "kl", "kl_weight", "score", "score_deviation", "non_score_reward", "rlhf_reward", "flat_groups",
    "answer_tokens", "answer_tokens_least", "answer_tokens_most", "cut_share", "ended", "sampler_gap", "episodes",
)  # fmt: skip
"""Of a rollout; with those of a step they are what TRL logs of PPO and GRPO, KL in nats per answer."""


def rollout_figures(
    worth: Worth, samples: Sequence[Sample], group: int, kl_B: Tensor, weight: float
) -> dict[str, float]:
    """Of a rollout's samples, `group` to each prompt."""
    totals = torch.tensor(worth.total, dtype=torch.float64)
    lengths = [len(sample.tokens) for sample in samples]
    ended = sum(sample.finished for sample in samples)
    kl, score = float(kl_B.mean()), float(totals.mean())
    deviation = float(totals.std()) if len(totals) > 1 else 0.0
    figures = {
        "kl": kl, "kl_weight": weight, "score": score, "score_deviation": deviation,
        "non_score_reward": -weight * kl, "rlhf_reward": score - weight * kl,
        "flat_groups": float(flat(totals.view(-1, group)).double().mean()) if group > 1 else 0.0,
        "answer_tokens": sum(lengths) / len(lengths), "answer_tokens_least": float(min(lengths)),
        "answer_tokens_most": float(max(lengths)), "cut_share": 1 - ended / len(samples), "ended": float(ended),
    }  # fmt: skip
    return figures | {f"score_{name}": sum(values) / len(values) for name, values in worth.parts.items()}


@torch.no_grad()
def step_figures(logprobs_NA: Tensor, old_NA: Tensor, mask_NA: Tensor, form: PolicyForm) -> dict[str, float]:
    """How far one pass's policy is from the one that sampled, and how much of that the clip cuts off."""
    difference_NA = logprobs_NA - old_NA
    if form.ratio == "sequence":
        sequence_N = (difference_NA * mask_NA).sum(1) / mask_NA.sum(1).clamp(min=1)
        difference_NA = sequence_N[:, None].expand_as(mask_NA)
    ratio_NA = difference_NA.exp()
    high = form.clip_high if form.surrogate == "cispo" else 1 + form.clip_high
    below_NA, above_NA = (ratio_NA < 1 - form.clip_low).float(), (ratio_NA > high).float()
    ratio = mean(ratio_NA, mask_NA)
    return {
        "ratio": ratio,
        "ratio_variance": mean((ratio_NA - ratio) ** 2, mask_NA),
        "approx_kl": mean(difference_NA**2 / 2, mask_NA),
        "clip_low": mean(below_NA, mask_NA),
        "clip_high": mean(above_NA, mask_NA),
        "clip_fraction": mean(below_NA + above_NA, mask_NA),
    }


def flat(totals_NG: Tensor) -> Tensor:
    """Groups whose answers are all worth the same (N,)."""
    return totals_NG.amax(1) - totals_NG.amin(1) < 1e-9


def mean(values_NA: Tensor, mask_NA: Tensor) -> float:
    """Over the masked places."""
    return float((values_NA.detach() * mask_NA).sum() / mask_NA.sum().clamp(min=1))

"""Reinforcement learning on the policy's own answers, for the one training loop: GRPO's family and PPO.

Notable:
- A batch of the loop is only a place: which part of which rollout. The first part of a rollout makes the objective
  sample answers of the weights as they are now, with a seed of (seed, rollout).
- What was sampled, with its log-probabilities, advantages and figures, and the adapted KL weight are buffers of the
  trained module, hence part of the loop's resume point: a run killed within a rollout goes on with that very rollout.
- The reference and the reward model are derived again from their products, never saved.
- Old log-probabilities are computed by the training's own forward pass on the training's own batches, so the ratio is
  exactly 1 on the first minibatch; a run where it is not has a bug in sampling, masks or model, and is stopped.

Shapes: B answers of a rollout, N of one pass, T tokens of prompt and answer, A answer tokens (aligned on the left).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from llm_core.data.bpe import Tokenizer
from llm_core.data.dialogue import stop_ids
from llm_core.feedback.actor import Actor, OnlineOptions, Place, view, write
from llm_core.feedback.critic import Critic
from llm_core.feedback.objectives import (
    adapted_kl_weight,
    gae,
    group_advantages,
    policy_loss,
    token_rewards,
    value_loss,
    whiten,
)
from llm_core.feedback.preferences import epochs
from llm_core.feedback.token_scores import token_scores
from llm_core.feedback.watching import ROLLOUT_FIGURES, flat, mean, rollout_figures, step_figures
from llm_core.feedback.worth import Prompt, Rewards, Sample, refuse_useless
from llm_core.model.lora import adapter_off
from llm_core.model.sampling import generate
from llm_core.model.transformer import Transformer
from llm_core.train.gradients import Loss

RATIO_TOLERANCE = 1e-6
"""How far from 1 the first ratio may be: one forward pass, done twice, rounds alike."""
SAMPLER_TOLERANCE = 1e-2
"""Mean nats per token between the sampler's log-probabilities (with a cache) and the training's."""
PROBED = 64
"""Prompts whose answers say, before training, whether the reward says anything."""


class Online:
    """Batches and objective of online tuning: `place` and `objective` are what the loop takes."""

    def __init__(
        self,
        options: OnlineOptions,
        prompts: Sequence[Prompt],
        rewards: Rewards,
        tokenizer: Tokenizer,
        reference: Transformer | None,
    ) -> None:
        """`reference`: the chat model; None: the policy's own weights without their low-rank additions."""
        self.options, self.prompts, self.rewards, self.reference = options, prompts, rewards, reference
        self.tokenizer, self.stops = tokenizer, stop_ids(tokenizer)
        self.special = frozenset(tokenizer.specials.values())
        self.drawn = epochs(len(prompts), options.prompts, options.seed)
        self.names = (*ROLLOUT_FIGURES, *(f"score_{name}" for name in rewards.names))

    def actor(self, policy: Transformer, critic: Critic | None) -> Actor:
        """The module to train. `policy` is trained in place."""
        return Actor(policy, critic, self.options, max(len(p.tokens) for p in self.prompts), len(self.names))

    def place(self, number: int) -> Place:
        """Batch `number` of the loop."""
        return Place(*divmod(number, self.options.parts))

    def objective(self, actor: Actor, place: Place) -> Loss:
        """Loss on this part of the rollout, which is sampled now if this is its first part."""
        options = self.options
        scores = self._roll_out(actor, place.rollout) if place.part == 0 else None
        rows_N = self._rows(place, actor.prompt_B.device)
        logprobs_NA, entropy_NA = scores or self._scores(actor.policy, actor, rows_N)
        mask_NA, old_NA = actor.mask_BA[rows_N], actor.old_BA[rows_N]
        if place.part < options.passes:
            _check_ratio(logprobs_NA, old_NA, mask_NA)
        in_loss = options.method == "grpo" and options.kl != "reward"
        form, whole = options.form, not options.form.local
        total = policy_loss(
            logprobs_NA, old_NA, actor.advantages_BA[rows_N], mask_NA,
            clip_low=form.clip_low, clip_high=form.clip_high, ratio=form.ratio, surrogate=form.surrogate,
            normaliser=form.normaliser, denominator=1.0 if whole else None,
            reference_BT=actor.reference_BA[rows_N] if in_loss else None,
            beta=float(actor.kl_weight) if in_loss else 0.0, corrected_kl=options.kl == "k3_corrected",
        )  # fmt: skip
        count = self._count(mask_NA)
        figures = dict(zip(self.names, actor.told.tolist(), strict=True))
        figures |= step_figures(logprobs_NA, old_NA, mask_NA, form) | {"policy_loss": float(total.detach()) / count}
        figures["entropy"] = mean(entropy_NA, mask_NA)
        if actor.critic is not None:
            value, told = self._value_loss(actor, rows_N)
            total, figures = total + options.value_weight * value * float(mask_NA.sum()), figures | told
        return Loss(total, count, figures, int(actor.length_B[rows_N].sum()))

    def _count(self, mask_NA: Tensor) -> float:
        """What the pass's sum is divided by, so that however many passes a step has, it is the same step."""
        if self.options.form.local:
            return 1.0
        if self.options.form.normaliser == "token":
            return max(float(mask_NA.sum()), 1e-8)
        return float(mask_NA.numel() if self.options.form.normaliser == "constant" else len(mask_NA))

    def _rows(self, place: Place, device: torch.device) -> Tensor:
        """Answers of a part: a new order each epoch, cut into nearly equal parts."""
        options, share = self.options, self.options.minibatches * self.options.passes
        epoch, cut = divmod(place.part, share)
        order = np.random.default_rng([options.seed, place.rollout, epoch]).permutation(options.rows)
        return torch.from_numpy(order[cut * options.rows // share : (cut + 1) * options.rows // share]).to(device)

    def _scores(self, model: Transformer, actor: Actor, rows_N: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities and entropies of answers (N, A) under a model, at the sampling temperature."""
        tokens_NT, mask_NT, index_NA = view(actor, rows_N)
        scores = token_scores(model, tokens_NT, mask_NT, self.options.temperature)
        given_NA = index_NA < actor.length_B[rows_N, None]
        index_NA = index_NA.clamp_max(tokens_NT.shape[1] - 1)
        parts = (scores.logprobs_BT.gather(1, index_NA), scores.entropy_BT.gather(1, index_NA))
        return parts[0] * given_NA, parts[1] * given_NA

    def _seen(self, model: Transformer, actor: Actor, rows_N: Tensor) -> tuple[Tensor, Tensor]:
        """What `_scores` gives, as training sees it: without gradients torch takes kernels that round otherwise."""
        with torch.enable_grad():
            return self._scores(model, actor, rows_N)

    def _values(self, critic: Critic, actor: Actor, rows_N: Tensor) -> Tensor:
        """Values (N, A) at the places before each answer token."""
        tokens_NT, mask_NT, index_NA = view(actor, rows_N)
        values_NA: Tensor = critic(tokens_NT, mask_NT).gather(1, (index_NA - 1).clamp_max(tokens_NT.shape[1] - 1))
        return values_NA

    def _value_loss(self, actor: Actor, rows_N: Tensor) -> tuple[Tensor, dict[str, float]]:
        assert actor.critic is not None
        values_NA = self._values(actor.critic, actor, rows_N)
        old_NA, returns_NA, mask_NA = actor.values_BA[rows_N], actor.returns_BA[rows_N], actor.mask_BA[rows_N]
        loss = value_loss(values_NA, old_NA, returns_NA, mask_NA, clip=self.options.value_clip)
        moved_NA = ((values_NA - old_NA).abs() > self.options.value_clip).float()
        return loss, {"value_loss": float(loss.detach()), "value_clip_fraction": mean(moved_NA, mask_NA)}

    def sample(self, model: Transformer, prompts: Sequence[Prompt], samples: int, seed: int) -> list[Sample]:
        """`samples` answers to each prompt, one prompt's after the other's; a pure function of weights and seed."""
        drawn = generate(
            model, [prompt.tokens for prompt in prompts], max_new_tokens=self.options.max_new_tokens,
            temperature=self.options.temperature, stop_ids=self.stops, samples=samples, seed=seed,
        )  # fmt: skip
        return [
            Sample(prompt, c.tokens, c.logprobs, self._text(c.tokens), c.finished)
            for prompt, completions in zip(prompts, drawn, strict=True)
            for c in completions
        ]

    def _text(self, tokens: list[int]) -> str:
        return self.tokenizer.decode([token for token in tokens if token not in self.special]).strip()

    def probe(self, policy: Transformer) -> dict[str, float]:
        """What the reward says of the policy's answers before training.

        Raises `UselessReward` if it is not a number, or the same for all of them.
        """
        options = self.options
        samples = self.sample(policy, self.prompts[:PROBED], options.samples, (options.seed << 32) + (1 << 31))
        worth = self.rewards(samples)
        refuse_useless(worth.total)
        totals = torch.tensor(worth.total, dtype=torch.float64)
        alike = flat(totals.view(-1, options.samples)) if options.samples > 1 else torch.zeros(1)
        return {
            "reward_before": float(totals.mean()),
            "reward_deviation_before": float(totals.std()),
            "flat_groups_before": float(alike.double().mean()),
        }

    @torch.no_grad()
    def _roll_out(self, actor: Actor, rollout: int) -> tuple[Tensor, Tensor] | None:
        """Sample, score, and write everything that the steps of this rollout need into the actor's buffers.

        Where one part is the whole rollout, its log-probabilities and entropies are returned with their graph: the old
        log-probabilities and those to be trained come from one pass then.
        """
        options = self.options
        asked = [self.prompts[row] for row in self.drawn(rollout)]
        samples = self.sample(actor.policy, asked, options.samples, (options.seed << 32) + rollout)
        worth = self.rewards(samples)
        if not np.isfinite(worth.total).all():
            refuse_useless(worth.total)
        sampled_BA = write(actor, samples)
        first = [
            self._rows(Place(rollout, part), actor.prompt_B.device) for part in range(options.parts // options.epochs)
        ]
        scores = None
        for rows_N in first:
            scores = self._seen(actor.policy, actor, rows_N)
            actor.old_BA[rows_N] = scores[0].detach()
            if self.reference is not None:
                actor.reference_BA[rows_N] = self._seen(self.reference, actor, rows_N)[0].detach()
            else:
                with adapter_off(actor.policy):
                    actor.reference_BA[rows_N] = self._seen(actor.policy, actor, rows_N)[0].detach()
            if actor.critic is not None:
                actor.values_BA[rows_N] = self._values(actor.critic, actor, rows_N)
        gap = mean((sampled_BA - actor.old_BA).abs(), actor.mask_BA)
        kl_B = ((actor.old_BA - actor.reference_BA) * actor.mask_BA).sum(1)
        if gap > SAMPLER_TOLERANCE or (rollout == 0 and float(kl_B.abs().max()) > SAMPLER_TOLERANCE):
            raise RuntimeError(
                f"the policy is not what was sampled or does not start at the reference: {gap:.3g} nats per token "
                f"between sampler and training, {float(kl_B.mean()):.3g} nats per answer from the reference"
            )
        totals_B = torch.tensor(worth.total, dtype=torch.float64).to(kl_B.device)
        weight = float(actor.kl_weight)
        self._advantages(actor, totals_B.float(), kl_B, weight)
        told = rollout_figures(worth, samples, options.samples, kl_B, weight)
        told |= {"sampler_gap": gap, "episodes": float((rollout + 1) * options.rows)}
        actor.told.copy_(torch.tensor([told[name] for name in self.names], dtype=torch.float64))
        if options.kl_target is not None:
            observed = max(0.0, float(kl_B.mean()))
            adapted = adapted_kl_weight(
                weight, observed, target=options.kl_target, horizon=options.kl_horizon, batch=options.rows
            )
            actor.kl_weight.fill_(adapted)
        return scores if options.parts == 1 else None

    def _advantages(self, actor: Actor, totals_B: Tensor, kl_B: Tensor, weight: float) -> None:
        options, mask_BA = self.options, actor.mask_BA
        if options.method == "ppo":
            rewards_BA = token_rewards(totals_B, actor.old_BA, actor.reference_BA, mask_BA, kl_weight=weight)
            if options.whiten_rewards:
                rewards_BA = whiten(rewards_BA, mask_BA, shift_mean=False) * mask_BA
            advantages_BA, returns_BA = gae(rewards_BA, actor.values_BA, mask_BA, gamma=options.gamma, lam=options.lam)
            actor.advantages_BA.copy_(whiten(advantages_BA, mask_BA) * mask_BA)
            actor.returns_BA.copy_(returns_BA)
            return
        worth_B = totals_B - weight * kl_B if options.kl == "reward" else totals_B
        advantages_B = group_advantages(worth_B, options.samples, scale=options.form.scale)
        actor.advantages_BA.copy_(advantages_B[:, None].expand_as(mask_BA))
        keep_B = torch.ones_like(totals_B, dtype=torch.bool)
        if options.drop_flat_groups:
            keep_B &= ~flat(totals_B.view(-1, options.samples)).repeat_interleave(options.samples)
        if options.drop_cut_answers:
            ends_B = actor.tokens_BT.gather(1, actor.length_B[:, None] - 1)[:, 0]
            keep_B &= torch.isin(ends_B, torch.tensor(sorted(self.stops), device=ends_B.device))
        actor.mask_BA.mul_(keep_B[:, None])


def _check_ratio(logprobs_NA: Tensor, old_NA: Tensor, mask_NA: Tensor) -> None:
    farthest = float((((logprobs_NA.detach() - old_NA).exp() - 1) * mask_NA).abs().max())
    if not farthest <= RATIO_TOLERANCE:
        raise RuntimeError(
            f"the ratio of new to old probabilities is off by {farthest:.3g} on a first minibatch, not 1"
        )

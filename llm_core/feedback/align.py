"""Stage align: tune the chat model on the feedback, by DPO on the votes, or by GRPO or PPO on its own answers.

The reference is always the chat model: for DPO its log-probabilities of all pairs, computed once; for the online
methods a frozen copy, or with LoRA the very weights without their additions. A policy that does not start at the
reference, or a ratio that is not 1 where it has to be, means a bug, and the run is stopped. What feedback cannot teach
anything (too few votes, a reward that is no number or the same for all answers) leaves aligned as chat, with a reason.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from llm_core.artifacts import new_product
from llm_core.contract import BadInput, Emit, Event, Metric, Note, Progress, Report, Resumed
from llm_core.data.bpe import Tokenizer
from llm_core.feedback.actor import Actor, OnlineOptions
from llm_core.feedback.checks import CHECKS
from llm_core.feedback.comparing import SHOWN, asked, compare, shown
from llm_core.feedback.critic import Critic
from llm_core.feedback.objectives import POLICY_FORMS, PolicyForm
from llm_core.feedback.online import Online
from llm_core.feedback.pairwise import Pairwise
from llm_core.feedback.preferences import (
    POOLS,
    PairBatch,
    Vote,
    collate,
    encode_pairs,
    epochs,
    read_votes,
    too_few,
    training_pairs,
)  # fmt: skip
from llm_core.feedback.rollout import Answer, answer, answer_logprob, without_dropout
from llm_core.feedback.scorer import RewardModel, load_reward_model
from llm_core.feedback.worth import Prompt, Rewards, Sample, UselessReward
from llm_core.model.checkpoint import load_model, save_model
from llm_core.model.lora import LoraOptions, adapter_off, add_lora, merge_lora, save_adapter
from llm_core.model.transformer import Transformer
from llm_core.sealed import read_sealed, write_sealed
from llm_core.settings.align import AlignConfig
from llm_core.train.loop import Fit, LoopOptions, fit
from llm_core.train.machine import prepare
from llm_core.train.optim import AdamW, OptimizerOptions, Optimizers, make_optimizer
from llm_core.train.schedule import cosine

TOLD = 2
"""Sampled answers in the log at each look; the report keeps all of them."""

CARD = """# Aligned model

The chat model, tuned by {method} {on}.
Divergence from the chat model: {kl_from_chat:.2f} nats per sampled answer.
"""


def run(config: AlignConfig, *, chat: Path, reward: Path, votes: Path, out: Path, scratch: Path, emit: Emit) -> Report:
    """Tune, then compare with chat on prompts that were held out. With nothing to learn from it stays chat."""
    machine = prepare(config.threads, config.device)
    stage = _Stage(config, chat, load_reward_model(reward).to(machine.device), read_votes(votes), scratch, emit)
    tuned, fitted, facts = stage.dpo() if config.method == "dpo" else stage.online()
    reference = load_model(chat).to(machine.device).eval()
    aligned = reference if tuned is None else stage.plain(tuned)
    metrics, samples = compare(
        {"chat": reference, "aligned": aligned}, stage.held_out[: config.kl_prompts], stage.scorer, stage.tokenizer,
        check=CHECKS[config.online.check], max_new_tokens=config.max_new_tokens, seed=config.seed,
    )  # fmt: skip
    emit(Metric(fitted.steps, {f"validation/{name}": value for name, value in metrics.items()}))
    metrics |= {name.replace("validation/", "held_out_"): v for name, v in fitted.last.items() if "validation/" in name}
    metrics |= facts | {"steps": fitted.steps, "prompts_too_long": stage.too_long}
    named = {"method": config.method, "raters": stage.raters, "pairs": len(stage.pairs)}
    with new_product(out, "aligned", named) as folder:
        if tuned is not None and stage.lora is not None:
            save_adapter(tuned, folder / "adapter", stage.lora)
        save_model(aligned, folder, stage.tokenizer, stage.card(metrics["kl_from_chat"]))
    return Report(metrics, samples=[*samples, *stage.looks.rows()])


class _Stage:
    """What both kinds of tuning need: the votes as pairs and prompts, and the models."""

    def __init__(
        self, config: AlignConfig, chat: Path, scorer: RewardModel, votes: Sequence[Vote], scratch: Path, emit: Emit
    ) -> None:
        self.config, self.scorer, self.scratch = config, scorer, scratch
        self.looks = _Looks(scratch, emit)
        self.chat = load_model(chat).to(next(scorer.parameters()).device)
        self.tokenizer, context = Tokenizer.load(chat), self.chat.config.context
        self.pairs, self.judged = training_pairs(votes, config.pool, "align")
        self.prompts, too_long = asked(votes, config.pool, "train", self.tokenizer, context)
        self.held_out, more = asked(votes, config.pool, "validation", self.tokenizer, context)
        self.too_long = too_long + more
        self.raters = sorted({vote.rater for vote in votes if vote.rater in POOLS[config.pool]})
        self.lora = None if config.lora is None else LoraOptions(**config.lora.model_dump())

    def card(self, divergence: float) -> str:
        """The model card."""
        raters = f"on {len(self.pairs)} preferences of: {', '.join(self.raters)}"
        source = self.config.online.reward
        learned = {"model": f"a reward model trained {raters}", "checked": "checked answers"}
        learned["mix"] = f"{learned['checked']} and {learned['model']}"
        on = raters if self.config.method == "dpo" else f"for {learned[source]}"
        return CARD.format(method=self.config.method.upper(), on=on, kl_from_chat=divergence)

    def policy(self) -> Transformer:
        """The chat model to train, without dropout; with LoRA its weights are frozen and additions trained."""
        policy = without_dropout(self.chat)
        if self.lora is not None:
            torch.manual_seed(self.config.seed)
            add_lora(policy, self.lora)
        return policy

    def plain(self, tuned: Transformer) -> Transformer:
        """The tuned weights, additions merged, under the chat model's own config."""
        if self.lora is not None:
            tuned = without_additions(tuned)
        model = Transformer(self.chat.config).to(tuned.head_weight.device)
        model.load_state_dict(tuned.state_dict())
        return model.eval()

    def nothing(self, reason: str, facts: Mapping[str, float]) -> tuple[None, Fit, dict[str, float]]:
        """What is left if there is nothing to learn from."""
        self.looks.emit(Note(f"{reason}: aligned is chat, unchanged"))
        return None, Fit(), dict(facts)

    def dpo(self) -> tuple[Transformer | None, Fit, dict[str, float]]:
        """The policy tuned on the pairs, how it went, and facts for the report; None if there were too few."""
        config, context = self.config, self.chat.config.context
        pairs = encode_pairs(self.pairs, self.tokenizer, context)
        judged = encode_pairs(self.judged, self.tokenizer, context)
        facts = {"pairs": float(len(pairs)), "held_out_pairs": float(len(judged))}
        facts["too_long_pairs"] = float(len(self.pairs) + len(self.judged) - len(pairs) - len(judged))
        self.looks.emit(Note(f"{len(pairs)} pairs to train on, {len(judged)} held out, by: {', '.join(self.raters)}"))
        if reason := too_few(pairs, judged, config.batch_pairs):
            return self.nothing(reason, facts)
        policy, form = self.policy(), Pairwise(
            config.loss, config.beta, config.label_smoothing, config.sft_weight, config.ld_alpha
        )  # fmt: skip
        with adapter_off(policy):
            known, known_judged = (form.known(policy, given, config.batch_pairs) for given in (pairs, judged))
        order, device = epochs(len(pairs), config.batch_pairs, config.seed), known.device

        def batch(step: int) -> PairBatch:
            return collate(pairs, order(step)).to(device)

        def look(model: Transformer) -> dict[str, float]:
            self._show(model)
            judgement = form.judge(model, judged, known_judged, config.batch_pairs)
            return {f"validation/{name}": value for name, value in judgement.items()}

        form.check_start(policy, known, batch(0))
        fitted = fit(
            policy,
            batch=batch,
            objective=form.objective(known),
            optimizer=self._optimizer(policy),
            schedule=cosine(config.steps, config.warmup_share),
            options=LoopOptions(
                config.steps,
                seed=config.seed,
                evaluate_every=config.evaluate_every,
                save_every_seconds=config.save_every_seconds,
            ),
            scratch=self.scratch,
            emit=self.looks.hear,
            evaluate=look,
        )
        return policy, fitted, facts

    def _optimizer(self, policy: Transformer) -> Optimizers:
        config = self.config
        return make_optimizer(
            policy, OptimizerOptions(learning_rate=config.learning_rate, weight_decay=config.weight_decay)
        )

    def _show(self, model: Transformer) -> None:
        some = self.held_out[:SHOWN]
        given = answer(
            model, self.tokenizer, [prompt.messages for prompt in some],
            samples=1, temperature=1.0, max_new_tokens=self.config.max_new_tokens, seed=self.config.seed,
        )  # fmt: skip
        self.looks.show(some, [answers[0].text for answers in given])

    def online(self) -> tuple[Transformer | None, Fit, dict[str, float]]:
        """The policy tuned on its own answers, how it went, and facts; None if the reward says nothing."""
        config, online = self.config, self.config.online
        prompts, held_out = self._asked(self.prompts), self._asked(self.held_out)[: online.evaluate_prompts]
        facts = {"prompts": float(len(prompts)), "held_out_prompts": float(len(held_out))}
        self.looks.emit(Note(f"{len(prompts)} prompts to train on, {len(held_out)} held out"))
        if reason := too_few_prompts(prompts, held_out, online.prompts):
            return self.nothing(reason, facts)
        policy = self.policy()
        rewards = Rewards(
            online.reward, self.scorer, CHECKS[online.check], online.checked_weight, online.missing_end_penalty
        )
        reference = without_dropout(self.chat).eval() if self.lora is None else None
        tuning = Online(_options(config), prompts, rewards, self.tokenizer, reference)
        actor = tuning.actor(policy, Critic(self.scorer) if config.method == "ppo" else None)
        try:
            facts |= tuning.probe(policy)
            fitted = self._fit_online(tuning, actor, held_out)
        except UselessReward as useless:
            return self.nothing(str(useless), facts | {"useless_reward": 1.0})
        return actor.policy, fitted, facts | {"kl_weight": float(actor.kl_weight)}

    def _asked(self, prompts: Sequence[Prompt]) -> list[Prompt]:
        """Those whose answers can be rewarded."""
        if self.config.online.reward == "model":
            return list(prompts)
        checked = [prompt for prompt in prompts if prompt.check is not None]
        if prompts and not checked:
            raise BadInput(
                f"align.online.reward = {self.config.online.reward!r}: none of the votes' {len(prompts)} prompts has "
                "an answer that can be checked; take the reward model's score ('model')"
            )
        return checked

    def _fit_online(self, tuning: Online, actor: Actor, held_out: Sequence[Prompt]) -> Fit:
        online, options = self.config.online, tuning.options
        per_rollout = options.epochs * options.minibatches
        steps = online.rollouts * per_rollout
        return fit(
            actor,
            batch=tuning.place,
            objective=tuning.objective,
            optimizer=self._online_optimizer(actor),
            schedule=cosine(steps, online.warmup_share),
            options=LoopOptions(
                steps,
                seed=self.config.seed,
                accumulate=options.passes,
                evaluate_every=online.evaluate_every * per_rollout,
                save_every_seconds=self.config.save_every_seconds,
                out_of_memory="raise online.passes, which cuts a step into smaller batches",
            ),
            scratch=self.scratch,
            emit=self.looks.hear,
            evaluate=lambda actor: self._look(tuning, actor.policy, held_out),
        )

    def _online_optimizer(self, actor: Actor) -> Optimizers:
        """AdamW for policy and critic, each at its own learning rate."""
        config, parts = self.config, list[AdamW]()
        rates = {"policy.": config.online.learning_rate, "critic.": config.ppo.value_learning_rate}
        for prefix, rate in rates.items():
            named = [(name, p) for name, p in actor.named_parameters() if p.requires_grad and name.startswith(prefix)]
            matrices = [(name, p) for name, p in named if p.dim() >= 2]
            rest = [(name, p) for name, p in named if p.dim() < 2]
            for group, decay in ((matrices, config.weight_decay), (rest, 0.0)):
                if group:
                    parts.append(AdamW(group, rate, (0.9, 0.95), decay))
        if config.method == "ppo":
            for part in parts:
                part.eps = config.ppo.adam_epsilon
        return Optimizers(actor, [], parts)

    def _look(self, tuning: Online, policy: Transformer, prompts: Sequence[Prompt]) -> dict[str, float]:
        """Answers to held-out prompts: what they are worth, how long they are, how far the policy went."""
        samples = tuning.sample(policy, prompts, 1, self.config.seed)
        worth = tuning.rewards(samples)
        given = [Answer(s.prompt.tokens, s.tokens, s.text, s.finished) for s in samples]
        ours = answer_logprob(policy, given)
        with adapter_off(policy):
            theirs = answer_logprob(tuning.reference or policy, given)
        self.looks.show(prompts, [sample.text for sample in samples])
        figures = {
            "score": sum(worth.total) / len(samples),
            "kl": sum(x - y for x, y in zip(ours, theirs, strict=True)) / len(samples),
            "answer_tokens": sum(len(sample.tokens) for sample in samples) / len(samples),
            "ended": sum(sample.finished for sample in samples) / len(samples),
        }
        figures |= {f"score_{name}": sum(values) / len(values) for name, values in worth.parts.items()}
        if right := self._right(samples):
            figures["right"] = sum(right) / len(right)
        return {f"validation/{name}": value for name, value in figures.items()}

    def _right(self, samples: Sequence[Sample]) -> list[bool]:
        check = CHECKS[self.config.online.check]
        return [check(s.text, s.prompt.check) for s in samples if s.prompt.check is not None]


class _Looks:
    """Hears what the loop tells, so as to know its step, and keeps the sampled answers of every evaluation."""

    def __init__(self, scratch: Path, emit: Emit) -> None:
        self.scratch, self.emit, self.step = scratch, emit, 0

    def hear(self, event: Event) -> None:
        """Pass the event on."""
        if isinstance(event, Progress):
            self.step = round(event.done)
        elif isinstance(event, Resumed):
            self.step = event.step
        self.emit(event)

    def show(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> None:
        """Tell of the first answers and keep them."""
        rows = shown(f"step {self.step}", prompts, texts)
        write_sealed(self.scratch / f"answers-{self.step:08d}.json", rows)
        lines = "; ".join(f"{row['prompt']!r} -> {row['text']!r}" for row in rows[:TOLD])
        self.emit(Note(f"step {self.step}, sampled: {lines}"))

    def rows(self) -> list[dict[str, str]]:
        """All that were kept, in order."""
        return [row for path in sorted(self.scratch.glob("answers-*.json")) for row in read_sealed(path)]


def without_additions(tuned: Transformer) -> Transformer:
    """A copy of a model with low-rank additions, these merged into its weights."""
    return merge_lora(copy.deepcopy(tuned))


def too_few_prompts(train: Sequence[Prompt], held_out: Sequence[Prompt], least: int) -> str:
    """Why nothing can be learned from so few prompts, as a sentence; empty if there are enough."""
    if len(train) >= least and held_out:
        return ""
    return f"too few prompts: {len(train)} to train on ({least} are needed), {len(held_out)} held out (1 is needed)"


def _options(config: AlignConfig) -> OnlineOptions:
    online, grpo, ppo = config.online, config.grpo, config.ppo
    form = PolicyForm(clip_low=ppo.clip, clip_high=ppo.clip)
    if config.method == "grpo":
        form = POLICY_FORMS[grpo.variant]
        form = replace(
            form,
            clip_low=form.clip_low if grpo.clip_low is None else grpo.clip_low,
            clip_high=form.clip_high if grpo.clip_high is None else grpo.clip_high,
            scale=form.scale if grpo.scale == "variant" else grpo.scale,
        )
    assert config.method != "dpo"
    return OnlineOptions(
        method=config.method, seed=config.seed, prompts=online.prompts, samples=online.samples, epochs=online.epochs,
        minibatches=online.minibatches, passes=online.passes, temperature=online.temperature,
        max_new_tokens=config.max_new_tokens, kl_weight=online.kl_weight, kl_target=online.kl_target,
        kl_horizon=online.kl_horizon, form=form, kl=grpo.kl, drop_flat_groups=grpo.drop_flat_groups,
        drop_cut_answers=grpo.drop_cut_answers, value_clip=ppo.value_clip, value_weight=ppo.value_weight,
        gamma=ppo.gamma, lam=ppo.lam, whiten_rewards=ppo.whiten_rewards,
    )  # fmt: skip

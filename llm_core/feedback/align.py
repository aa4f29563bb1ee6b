"""Stage align: tune the chat model on the votes by direct preference optimisation (DPO).

The reference is the chat model itself: its log-probabilities of all pairs are computed once, so no second model is kept
while training. At step 0 policy and reference are the same, hence the margin 0 and the sigmoid loss ln 2; a run that
starts otherwise has a bug in its data or model, and is stopped. The reward model trains nothing here: it scores
sampled answers before and after, beside the divergence that was paid for them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from llm_core.artifacts import new_product
from llm_core.contract import Emit, Metric, Note, Report
from llm_core.data.bpe import Tokenizer
from llm_core.data.dialogue import encode_prompt
from llm_core.data.sources.problems import is_right
from llm_core.feedback.objectives import answer_logprobs, dpo_loss
from llm_core.feedback.preferences import (
    POOLS,
    EncodedPair,
    PairBatch,
    Vote,
    collate,
    encode_pairs,
    epochs,
    in_order,
    prompt_text,
    read_votes,
    too_few,
    training_pairs,
)  # fmt: skip
from llm_core.feedback.rollout import Answer, answer, divergence, without_dropout
from llm_core.feedback.scorer import RewardModel, load_reward_model
from llm_core.model.checkpoint import load_model, save_model
from llm_core.model.transformer import Transformer
from llm_core.settings.align import AlignConfig
from llm_core.train.loop import Fit, LoopOptions, Loss, fit
from llm_core.train.loss import sequence_logprobs
from llm_core.train.machine import prepare
from llm_core.train.optim import OptimizerOptions, make_optimizer
from llm_core.train.schedule import cosine

CARD = """# Aligned model

The chat model, tuned by DPO on {pairs} preferences of: {raters}.
Divergence from the chat model: {kl_from_chat:.2f} nats per sampled answer.
"""
START_TOLERANCE = 1e-3  # nats: batches are padded differently when the reference is computed


def run(config: AlignConfig, *, chat: Path, reward: Path, votes: Path, out: Path, scratch: Path, emit: Emit) -> Report:
    """Tune, then compare with chat on prompts that were held out. With too few pairs it stays chat."""
    machine = prepare(config.threads, config.device)
    reference, tokenizer, rows = load_model(chat).to(machine.device), Tokenizer.load(chat), read_votes(votes)
    context = reference.config.context
    train, held_out = training_pairs(rows, config.pool, "align")
    pairs, judged = encode_pairs(train, tokenizer, context), encode_pairs(held_out, tokenizer, context)
    raters = sorted({vote.rater for vote in rows if vote.rater in POOLS[config.pool]})
    emit(Note(f"{len(pairs)} pairs to train on, {len(judged)} held out, by: {', '.join(raters)}"))
    policy, fitted = reference, Fit()
    if reason := too_few(pairs, judged, config.batch_pairs):
        emit(Note(f"{reason}: aligned is chat, unchanged"))
    else:
        policy, fitted = _tune(config, reference, pairs, judged, scratch, emit)
    scorer = load_reward_model(reward).to(machine.device)
    metrics, samples = _compare(config, policy, reference, scorer, tokenizer, rows)
    emit(Metric(fitted.steps, {f"validation/{name}": value for name, value in metrics.items()}))
    metrics |= {name.replace("validation/", "held_out_"): v for name, v in fitted.last.items() if "validation/" in name}
    metrics |= {"pairs": len(pairs), "held_out_pairs": len(judged), "steps": fitted.steps}
    with new_product(out, "aligned", {"method": config.method, "raters": raters, "pairs": len(pairs)}) as folder:
        card = CARD.format(pairs=len(pairs), raters=", ".join(raters), kl_from_chat=metrics["kl_from_chat"])
        save_model(policy, folder, tokenizer, card)
    return Report(metrics, samples=samples)


def _tune(
    config: AlignConfig,
    reference: Transformer,
    pairs: Sequence[EncodedPair],
    judged: Sequence[EncodedPair],
    scratch: Path,
    emit: Emit,
) -> tuple[Transformer, Fit]:
    """The tuned model, with the reference's own config, and how the training went."""
    known, known_judged = _reference(reference, pairs, config), _reference(reference, judged, config)
    order, device = epochs(len(pairs), config.batch_pairs, config.seed), reference.head_weight.device
    policy = without_dropout(reference)
    objective = _objective(config, known)

    def batch(step: int) -> PairBatch:
        return collate(pairs, order(step)).to(device)

    _check_start(policy, objective, batch(0), config)
    fitted = fit(
        policy,
        batch=batch,
        objective=objective,
        optimizer=make_optimizer(
            policy, OptimizerOptions(learning_rate=config.learning_rate, weight_decay=config.weight_decay)
        ),
        schedule=cosine(config.steps, config.warmup_share),
        options=LoopOptions(config.steps, seed=config.seed, evaluate_every=config.evaluate_every),
        scratch=scratch,
        emit=emit,
        evaluate=lambda model: _judge(model, judged, known_judged, config),
    )
    tuned = Transformer(reference.config).to(device)
    tuned.load_state_dict(policy.state_dict())
    return tuned.eval(), fitted


@torch.no_grad()
def _reference(model: Transformer, pairs: Sequence[EncodedPair], config: AlignConfig) -> Tensor:
    """The reference's log-probabilities of the answers, (2, pairs): chosen, rejected."""
    model.eval()
    device = model.head_weight.device
    parts = [_answers(model, collate(pairs, rows).to(device)) for rows in in_order(len(pairs), config.batch_pairs)]
    return torch.cat(parts, dim=1)


def _answers(model: Transformer, batch: PairBatch) -> Tensor:
    """Log-probabilities of a batch's answers, (2, P)."""
    return answer_logprobs(sequence_logprobs(model, batch.tokens_BT, batch.mask_BT), batch.mask_BT).view(2, -1)


def _objective(config: AlignConfig, known: Tensor) -> Callable[[Transformer, PairBatch], Loss]:
    def objective(model: Transformer, batch: PairBatch) -> Loss:
        ours = _answers(model, batch)
        loss = _loss(config, ours, known[:, batch.rows_P], batch)
        count = ours.shape[1]
        return Loss(loss * count, count, _figures(ours, known[:, batch.rows_P], config), batch.tokens_BT.numel())

    return objective


def _loss(config: AlignConfig, ours: Tensor, known: Tensor, batch: PairBatch) -> Tensor:
    chosen_lengths_P, rejected_lengths_P = batch.mask_BT.sum(-1).view(2, -1)
    return dpo_loss(
        ours[0], ours[1], known[0], known[1],
        beta=config.beta,
        form=config.loss,
        label_smoothing=config.label_smoothing,
        chosen_lengths_P=chosen_lengths_P,
        rejected_lengths_P=rejected_lengths_P,
        sft_weight=config.sft_weight,
    )  # fmt: skip


@torch.no_grad()
def _figures(ours: Tensor, known: Tensor, config: AlignConfig) -> dict[str, float]:
    """TRL's names: implicit rewards, their margin, and how likely the answers themselves are."""
    rewards = config.beta * (ours - known)
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
def _check_start(
    policy: Transformer, objective: Callable[[Transformer, PairBatch], Loss], batch: PairBatch, config: AlignConfig
) -> None:
    loss = objective(policy, batch)
    margin = loss.figures["margin"] / config.beta
    plain = config.loss == "sigmoid" and not config.sft_weight
    if abs(margin) > START_TOLERANCE or (plain and abs(float(loss.total) / loss.count - math.log(2)) > START_TOLERANCE):
        raise RuntimeError(
            f"the policy does not start at the reference: margin {margin:.3g} nats (0 expected), "
            f"loss {float(loss.total) / loss.count:.5f}"
        )


def _judge(model: Transformer, pairs: Sequence[EncodedPair], known: Tensor, config: AlignConfig) -> dict[str, float]:
    """Loss and implicit rewards on held-out pairs."""
    device, losses, parts = known.device, 0.0, []
    for rows in in_order(len(pairs), config.batch_pairs):
        batch = collate(pairs, rows).to(device)
        ours = _answers(model, batch)
        losses += float(_loss(config, ours, known[:, batch.rows_P], batch)) * len(rows)
        parts.append(ours)
    figures = _figures(torch.cat(parts, dim=1), known, config) | {"loss": losses / len(pairs)}
    return {f"validation/{name}": value for name, value in figures.items()}


def _compare(
    config: AlignConfig,
    policy: Transformer,
    reference: Transformer,
    scorer: RewardModel,
    tokenizer: Tokenizer,
    votes: Sequence[Vote],
) -> tuple[dict[str, float], list[dict[str, str]]]:
    """Sampled answers before and after on held-out prompts: reward, share right where it can be checked, KL."""
    prompts = _held_out_prompts(votes, config, tokenizer, policy.config.context)
    metrics: dict[str, float] = {"compared_prompts": len(prompts), "kl_from_chat": 0.0}
    if not prompts:
        return metrics, []
    samples: list[dict[str, str]] = []
    drawn: dict[str, list[Answer]] = {}
    for name, model in (("chat", reference), ("aligned", policy)):
        answers = answer(
            model, tokenizer, [vote.prompt for vote in prompts],
            samples=1, temperature=1.0, max_new_tokens=config.max_new_tokens, seed=config.seed,
        )  # fmt: skip
        drawn[name] = [given[0] for given in answers]
        scores = scorer.score([(a.prompt_tokens + a.tokens)[: policy.config.context] for a in drawn[name]])
        metrics[f"reward_{name}"] = sum(scores) / len(scores)
        metrics[f"answer_tokens_{name}"] = sum(len(a.tokens) for a in drawn[name]) / len(prompts)
        checked = [is_right(a.text, v.check) for a, v in zip(drawn[name], prompts, strict=True) if v.check is not None]
        if checked:
            metrics[f"sampled_right_{name}"] = sum(checked) / len(checked)
        samples += [
            {"model": name, "prompt": vote.prompt[-1]["content"], "text": a.text}
            for vote, a in zip(prompts[:8], drawn[name], strict=False)
        ]
    metrics["kl_from_chat"] = divergence(policy, reference, drawn["aligned"])
    return metrics, samples


def _held_out_prompts(votes: Sequence[Vote], config: AlignConfig, tokenizer: Tokenizer, context: int) -> list[Vote]:
    """One vote for each distinct held-out prompt of the pool, in the order of the file."""
    found: dict[str, Vote] = {}
    for vote in votes:
        if vote.split == "validation" and vote.rater in POOLS[config.pool]:
            found.setdefault(prompt_text(vote.prompt), vote)
    fitting = [vote for vote in found.values() if len(encode_prompt(vote.prompt, tokenizer)) < context]
    return fitting[: config.kl_prompts]

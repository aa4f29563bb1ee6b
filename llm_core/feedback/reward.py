"""Stage reward: train the reward model on the votes, and say whether it beats length and word counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from llm_core.artifacts import new_product
from llm_core.contract import Emit, Note, Report
from llm_core.data.bpe import Tokenizer
from llm_core.data.dialogue import encode
from llm_core.feedback.baselines import length_accuracy, words_accuracy
from llm_core.feedback.objectives import reward_loss
from llm_core.feedback.preferences import (
    POOLS,
    EncodedPair,
    PairBatch,
    Pool,
    Vote,
    collate,
    encode_pairs,
    epochs,
    in_order,
    read_votes,
    too_few,
    training_pairs,
)  # fmt: skip
from llm_core.feedback.rollout import without_dropout
from llm_core.feedback.scorer import RewardModel, save_reward_model
from llm_core.model.checkpoint import load_model
from llm_core.settings.reward import RewardConfig
from llm_core.train.loop import Fit, LoopOptions, Loss, fit
from llm_core.train.machine import prepare
from llm_core.train.optim import OptimizerOptions, make_optimizer
from llm_core.train.schedule import cosine

NORMALISED_ON = 2000  # answers: enough to know mean and deviation to 2%
CARD = """# Reward model

Scores an answer to a dialogue; trained on {pairs} preferences of: {raters}. {accuracy}
The score of the chat model's answers has mean 0 and deviation 1. Head: `head.safetensors`.
"""


def run(config: RewardConfig, *, chat: Path, votes: Path, out: Path, scratch: Path, emit: Emit) -> Report:
    """Train on clear pairs, keep the best step on held-out ones, normalise. With too few it stays random."""
    machine = prepare(config.threads, config.device)
    tokenizer, rows = Tokenizer.load(chat), read_votes(votes)
    model = RewardModel(without_dropout(load_model(chat)), config.seed).to(machine.device)
    context = model.backbone.config.context
    train, held_out = training_pairs(rows, config.pool, "reward")
    pairs, judged = encode_pairs(train, tokenizer, context), encode_pairs(held_out, tokenizer, context)
    raters = sorted({vote.rater for vote in rows if vote.rater in POOLS[config.pool]})
    emit(Note(f"{len(pairs)} pairs to train on, {len(judged)} held out, by: {', '.join(raters)}"))
    metrics: dict[str, float] = {"pairs": len(pairs), "held_out_pairs": len(judged)}
    metrics["too_long_pairs"] = len(train) + len(held_out) - len(pairs) - len(judged)
    if reason := too_few(pairs, judged, config.batch_pairs):
        emit(Note(f"{reason}: the reward model stays untrained"))
        metrics["steps"] = 0
    else:
        fitted = _train(config, model, pairs, judged, scratch, emit)
        metrics |= {name.removeprefix("validation/"): value for name, value in fitted.best.items()}
        metrics |= {"steps": fitted.steps, "length_accuracy": length_accuracy(train, held_out)}
        metrics["words_accuracy"] = words_accuracy(train, held_out)
    before = model.normalise(_answers(rows, config.pool, tokenizer, context))
    metrics["score_mean_before"], metrics["score_deviation_before"] = before
    with new_product(out, "reward", {**metrics, "raters": raters, "pool": config.pool}) as folder:
        accuracy = f"Held-out accuracy {metrics['accuracy']:.1%}." if "accuracy" in metrics else "Untrained."
        card = CARD.format(pairs=len(pairs), raters=", ".join(raters), accuracy=accuracy)
        save_reward_model(model, folder, tokenizer, card)
    return Report(metrics, {"accuracy on held-out pairs": _table(metrics)} if "accuracy" in metrics else {})


def _train(
    config: RewardConfig,
    model: RewardModel,
    pairs: Sequence[EncodedPair],
    judged: Sequence[EncodedPair],
    scratch: Path,
    emit: Emit,
) -> Fit:
    order, device = epochs(len(pairs), config.batch_pairs, config.seed), model.weight.device
    return fit(
        model,
        batch=lambda step: collate(pairs, order(step)).to(device),
        objective=_objective(config.centre),
        optimizer=make_optimizer(
            model, OptimizerOptions(learning_rate=config.learning_rate, weight_decay=config.weight_decay)
        ),
        schedule=cosine(config.steps, config.warmup_share),
        options=LoopOptions(
            config.steps,
            seed=config.seed,
            evaluate_every=config.evaluate_every,
            keep_best_by="validation/loss",
            patience=config.patience,
        ),
        scratch=scratch,
        emit=emit,
        evaluate=lambda trained: _judge(trained, judged, config),
    )


def _objective(centre: float) -> Callable[[RewardModel, PairBatch], Loss]:
    def objective(model: RewardModel, batch: PairBatch) -> Loss:
        chosen_P, rejected_P = model(batch.tokens_BT, batch.last_B).view(2, -1)
        count = len(chosen_P)
        right = float((chosen_P > rejected_P).float().mean())
        loss = reward_loss(chosen_P, rejected_P, centre=centre)
        return Loss(loss * count, count, {"accuracy": right}, batch.tokens_BT.numel())

    return objective


def _judge(model: RewardModel, pairs: Sequence[EncodedPair], config: RewardConfig) -> Mapping[str, float]:
    """Loss and accuracy on held-out pairs; equal scores count half."""
    device = next(model.parameters()).device
    scores = [
        model(batch.tokens_BT, batch.last_B).view(2, -1)
        for batch in (collate(pairs, rows).to(device) for rows in in_order(len(pairs), config.batch_pairs))
    ]
    chosen_P, rejected_P = torch.cat(scores, dim=1)
    right = (chosen_P > rejected_P).float() + 0.5 * (chosen_P == rejected_P).float()
    return {
        "validation/loss": float(reward_loss(chosen_P, rejected_P)),
        "validation/accuracy": float(right.mean()),
        "validation/margin": float((chosen_P - rejected_P).mean()),
    }


def _answers(votes: Sequence[Vote], pool: Pool, tokenizer: Tokenizer, context: int) -> list[list[int]]:
    """Judged answers of the pool's training split as sequences, ties included, at most NORMALISED_ON of them."""
    wanted = [vote for vote in votes if vote.rater in POOLS[pool] and vote.split == "train"]
    sequences = [
        encode([*vote.prompt, {"role": "assistant", "content": answer}], tokenizer)[0]
        for vote in wanted[:: max(1, 2 * len(wanted) // NORMALISED_ON)]
        for answer in (vote.answer_a, vote.answer_b)
    ]
    return [sequence for sequence in sequences if len(sequence) <= context]


def _table(metrics: Mapping[str, float]) -> list[dict[str, str | float]]:
    return [
        {"who": "reward model", "accuracy": round(metrics["accuracy"], 4)},
        {"who": "length alone", "accuracy": round(metrics["length_accuracy"], 4)},
        {"who": "word counts", "accuracy": round(metrics["words_accuracy"], 4)},
    ]

"""Stage reward: train the reward model on the votes, and say how far it can be trusted.

Beside its accuracy on held-out pairs stand those of length alone, of word counts and of the chat model's own
likelihood, and whether its confidence is worth anything (reliability.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from llm_core.artifacts import new_product
from llm_core.contract import Emit, Note, Report
from llm_core.data.bpe import Tokenizer
from llm_core.data.dialogue import encode_prompt
from llm_core.feedback.baselines import right_by_length, right_by_words
from llm_core.feedback.objectives import answer_logprobs, reward_loss
from llm_core.feedback.preferences import (
    POOLS,
    EncodedPair,
    Pair,
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
from llm_core.feedback.reliability import Row, by_length, by_margin, calibration_error, reliability, right
from llm_core.feedback.rollout import answer, without_dropout
from llm_core.feedback.scorer import RewardModel, save_reward_model
from llm_core.feedback.statistics import paired_difference
from llm_core.model.checkpoint import load_model
from llm_core.model.transformer import Transformer
from llm_core.settings.reward import RewardConfig
from llm_core.train.loop import Fit, LoopOptions, Loss, fit
from llm_core.train.loss import sequence_logprobs
from llm_core.train.machine import prepare
from llm_core.train.optim import OptimizerOptions, make_optimizer
from llm_core.train.schedule import cosine

CARD = """# Reward model

Scores an answer to a dialogue; trained on {pairs} preferences of: {raters}. {accuracy}
Heads: {heads}. The score of the chat model's answers has mean 0 and deviation 1. See `head.safetensors`, `reward.json`.
"""


@dataclass(frozen=True)
class Lesson:
    """What one head learns from and is judged on, as texts and as tokens; pairs that are too long are left out."""

    head: str
    train: list[Pair]
    held_out: list[Pair]
    pairs: list[EncodedPair]
    judged: list[EncodedPair]
    too_long: int


def run(config: RewardConfig, *, chat: Path, votes: Path, out: Path, scratch: Path, emit: Emit) -> Report:
    """Train on clear pairs, keep the best step on held-out ones, normalise. With too few it stays random."""
    machine = prepare(config.threads, config.device)
    tokenizer, rows, speaker = Tokenizer.load(chat), read_votes(votes), load_model(chat).to(machine.device)
    opening = encode_prompt([], tokenizer) if config.likelihood else ()
    model = RewardModel(without_dropout(speaker), config.seed, list(config.heads), opening).to(machine.device)
    context = speaker.config.context
    lessons = []
    for head, settings in config.heads.items():
        found = training_pairs(rows, config.pool, "reward", settings.sources)
        lessons.append(_lesson(head, *found, tokenizer, context))
    raters = sorted({vote.rater for vote in rows if vote.rater in POOLS[config.pool]})
    metrics: dict[str, float] = {
        "pairs": sum(len(lesson.pairs) for lesson in lessons),
        "held_out_pairs": sum(len(lesson.judged) for lesson in lessons),
        "too_long_pairs": sum(lesson.too_long for lesson in lessons),
    }
    emit(Note(f"{metrics['pairs']} pairs to train on, {metrics['held_out_pairs']} held out, by: {', '.join(raters)}"))
    tables: dict[str, list[Row]] = {}
    if reason := _too_few(lessons, config):
        emit(Note(f"{reason}: the reward model stays untrained"))
        metrics["steps"] = 0
    else:
        fitted = _train(config, model, lessons, scratch, emit)
        metrics |= {name.removeprefix("validation/"): value for name, value in fitted.best.items()}
        metrics["steps"] = fitted.steps
        tables = _examine(model, speaker, lessons, config.batch_pairs, metrics)
    before = model.normalise(_answers(rows, speaker, tokenizer, config), _weights(config))
    metrics["score_mean_before"], metrics["score_deviation_before"] = before[:2]
    with new_product(out, "reward", {**metrics, "raters": raters, "pool": config.pool}) as folder:
        accuracy = f"Held-out accuracy {metrics['accuracy']:.1%}." if "accuracy" in metrics else "Untrained."
        named = {"pairs": round(metrics["pairs"]), "raters": ", ".join(raters), "heads": ", ".join(config.heads)}
        save_reward_model(model, folder, tokenizer, CARD.format(accuracy=accuracy, **named))
    return Report(metrics, tables)


def _weights(config: RewardConfig) -> dict[str, float]:
    return {name: head.weight for name, head in config.heads.items()}


def _lesson(head: str, train: list[Pair], held_out: list[Pair], tokenizer: Tokenizer, context: int) -> Lesson:
    """The pairs whose sequences fit into the context, so that texts and tokens stand side by side."""

    def fitting(pairs: list[Pair]) -> tuple[list[Pair], list[EncodedPair]]:
        found = [(pair, encode_pairs([pair], tokenizer, context)) for pair in pairs]
        return [pair for pair, encoded in found if encoded], [encoded[0] for _, encoded in found if encoded]

    (shown, pairs), (kept, judged) = fitting(train), fitting(held_out)
    return Lesson(head, shown, kept, pairs, judged, len(train) + len(held_out) - len(pairs) - len(judged))


def _too_few(lessons: Sequence[Lesson], config: RewardConfig) -> str:
    least = max(1, config.batch_pairs // len(lessons))
    reasons = [(lesson.head, too_few(lesson.pairs, lesson.judged, least)) for lesson in lessons]
    named = [f"{reason}" if len(lessons) == 1 else f"head {head}: {reason}" for head, reason in reasons if reason]
    return "; ".join(named)


def _train(config: RewardConfig, model: RewardModel, lessons: Sequence[Lesson], scratch: Path, emit: Emit) -> Fit:
    pairs = [pair for lesson in lessons for pair in lesson.pairs]
    head_P = torch.tensor([place for place, lesson in enumerate(lessons) for _ in lesson.pairs])
    order, device = epochs(len(pairs), config.batch_pairs, config.seed), model.weight_HD.device
    return fit(
        model,
        batch=lambda step: collate(pairs, order(step)).to(device),
        objective=_objective(config.centre, head_P.to(device)),
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
        evaluate=lambda trained: _judge(trained, lessons, config.batch_pairs),
    )


def _objective(centre: float, head_P: Tensor) -> Callable[[RewardModel, PairBatch], Loss]:
    """The pairwise loss, each pair under its own head."""

    def objective(model: RewardModel, batch: PairBatch) -> Loss:
        heads_P = head_P[batch.rows_P]
        scores_B = model.head_scores(batch.tokens_BT, batch.last_B).gather(1, heads_P.repeat(2)[:, None])[:, 0]
        chosen_P, rejected_P = scores_B.view(2, -1)
        count = len(chosen_P)
        correct = float((chosen_P > rejected_P).float().mean())
        loss = reward_loss(chosen_P, rejected_P, centre=centre)
        return Loss(loss * count, count, {"accuracy": correct}, batch.tokens_BT.numel())

    return objective


def _judge(model: RewardModel, lessons: Sequence[Lesson], size: int) -> Mapping[str, float]:
    """Loss and accuracy on held-out pairs, over all and, of several heads, by head; equal scores count half."""
    figures: dict[str, float] = {}
    scores = [_scores(model, lesson.judged, place, size) for place, lesson in enumerate(lessons)]
    named = [("", torch.cat(scores, dim=1))]
    if len(lessons) > 1:
        named += [(f"{lesson.head}_", found) for lesson, found in zip(lessons, scores, strict=True)]
    for name, (chosen_P, rejected_P) in named:
        margin_P = chosen_P - rejected_P
        figures[f"validation/{name}loss"] = float(reward_loss(chosen_P, rejected_P))
        figures[f"validation/{name}accuracy"] = float(right(margin_P.tolist()).mean())
        figures[f"validation/{name}margin"] = float(margin_P.mean())
    return figures


@torch.no_grad()
def _scores(model: RewardModel, pairs: Sequence[EncodedPair], head: int, size: int) -> Tensor:
    """Scores of a head, (2, pairs): chosen, rejected."""
    device = model.weight_HD.device
    batches = (collate(pairs, rows).to(device) for rows in in_order(len(pairs), size))
    return torch.cat([model.head_scores(b.tokens_BT, b.last_B)[:, head].view(2, -1) for b in batches], dim=1).cpu()


def _examine(
    model: RewardModel, speaker: Transformer, lessons: Sequence[Lesson], size: int, metrics: dict[str, float]
) -> dict[str, list[Row]]:
    """Tables of the finished model on held-out pairs, with its scores as they were trained; figures go to `metrics`."""
    compared: list[Row] = []
    margins: list[float] = []
    for place, lesson in enumerate(lessons):
        chosen_P, rejected_P = _scores(model, lesson.judged, place, size)
        found = (chosen_P - rejected_P).tolist()
        margins += found
        rivals = {
            "length": right_by_length(lesson.train, lesson.held_out),
            "words": right_by_words(lesson.train, lesson.held_out),
            "likelihood": _right_by_likelihood(speaker, lesson.judged, size),
        }
        prefix = f"{lesson.head}_" if len(lessons) > 1 else ""
        for name, correct in rivals.items():
            metrics[f"{prefix}{name}_accuracy"] = sum(correct) / len(correct)
            gain = paired_difference(right(found), correct)
            metrics[f"{prefix}gain_over_{name}"], metrics[f"{prefix}gain_over_{name}_low"] = gain.value, gain.low
        shown = {"reward model": float(right(found).mean())} | {
            WHO[name]: sum(correct) / len(correct) for name, correct in rivals.items()
        }
        compared += [{"who": f"{who}{f' ({lesson.head})' if prefix else ''}", "accuracy": round(share, 4)}
                     for who, share in shown.items()]  # fmt: skip
    metrics["calibration_error"] = calibration_error(margins)
    held_out = [pair for lesson in lessons for pair in lesson.held_out]
    lengths = ([len(pair.chosen) for pair in held_out], [len(pair.rejected) for pair in held_out])
    return {
        "accuracy on held-out pairs": compared,
        "accuracy by margin": by_margin(margins),
        "accuracy by length": by_length(margins, *lengths),
        "reliability": reliability(margins),
    }


WHO = {"length": "length alone", "words": "word counts", "likelihood": "likelihood under chat"}


@torch.no_grad()
def _right_by_likelihood(speaker: Transformer, pairs: Sequence[EncodedPair], size: int) -> list[float]:
    """Of each pair, 1 if the chat model finds the chosen answer likelier, else 0."""
    device = speaker.head_weight.device
    speaker.eval()
    parts = []
    for rows in in_order(len(pairs), size):
        batch = collate(pairs, rows).to(device)
        logprobs_BT = sequence_logprobs(speaker, batch.tokens_BT, batch.mask_BT)
        parts.append(answer_logprobs(logprobs_BT, batch.mask_BT).view(2, -1).cpu())
    chosen_P, rejected_P = torch.cat(parts, dim=1)
    correct: list[float] = right((chosen_P - rejected_P).tolist()).tolist()
    return correct


def _answers(
    votes: Sequence[Vote], speaker: Transformer, tokenizer: Tokenizer, config: RewardConfig
) -> list[list[int]]:
    """What the chat model samples in answer to the pool's training prompts, as sequences to normalise scores on."""
    context = speaker.config.context
    pool = [vote for vote in votes if vote.rater in POOLS[config.pool] and vote.split == "train"]
    prompts = {prompt_text(vote.prompt): vote.prompt for vote in pool}.values()
    fitting = [prompt for prompt in prompts if len(encode_prompt(prompt, tokenizer)) < context]
    chosen = fitting[:: max(1, len(fitting) // config.normalise_on)][: config.normalise_on]
    drawn = answer(
        speaker.eval(), tokenizer, chosen, samples=1, temperature=config.temperature,
        max_new_tokens=config.max_new_tokens, seed=config.seed,
    )  # fmt: skip
    return [(given[0].prompt_tokens + given[0].tokens)[:context] for given in drawn]

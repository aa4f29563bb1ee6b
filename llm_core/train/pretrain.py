"""The stage pretrain: shards of pages in, a base model out."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from pathlib import Path

import torch

from llm_core.artifacts import new_product
from llm_core.contract import BadInput, Emit, Note, Report
from llm_core.data.shards import Shards
from llm_core.model.checkpoint import save_model
from llm_core.model.config import ModelConfig
from llm_core.model.huggingface import why_not_exportable
from llm_core.model.sampling import generate
from llm_core.model.transformer import Transformer
from llm_core.scaling.prediction import Prediction, distinct_tokens, predict
from llm_core.settings.pretrain import PretrainConfig
from llm_core.train.batches import PageBatches, Windows, next_token_loss_on, shuffled_stream
from llm_core.train.distributed import Ranks, cores_of_a_rank, join, ranks_to_start
from llm_core.train.heldout import bits_per_byte, document_nats, glance
from llm_core.train.launch import run_ranks
from llm_core.train.loop import Fit, LoopOptions, fit
from llm_core.train.machine import Machine, prepare
from llm_core.train.optim import OptimizerOptions, make_optimizer
from llm_core.train.schedule import make_schedule
from llm_core.train.speed import expected_seconds


def run(config: PretrainConfig, *, shards: Path, out: Path, scratch: Path, emit: Emit) -> Report:
    """Train a model from fresh weights on the training pages and measure it on the held-out ones."""
    if start := ranks_to_start(config):
        paths = {"shards": shards, "out": out, "scratch": scratch}
        return Report(**run_ranks(__name__, config.model_dump(mode="json"), paths, start, emit))
    ranks = join(config.parallel)
    data = Shards.open(shards)
    shape = config.model.build(data.vocab_size)
    lanes = 1 if shape.dropout or ranks.world > 1 else config.passes
    machine = prepare(cores_of_a_rank(config.threads), config.device, config.precision, lanes)
    emit(Note(_costs(config, shape, machine)))
    if reason := why_not_exportable(shape.architecture):
        emit(Note(f"later, {reason}"))
    expected = _expect(config, shape, data, machine, ranks)
    emit(Note(expected.sentence()))
    torch.manual_seed(config.seed)
    model = Transformer(shape).to(machine.device)
    result = _train(model, config, data, machine, ranks, scratch, emit)
    if not ranks.first:
        return Report({})
    figures = _measure(model, data, machine)
    figures |= {"parameters": shape.parameters(), "tokens_seen": result.tokens, "steps": result.steps}
    with new_product(out, "base", _facts(shape, config, figures)) as folder:
        save_model(model, folder, data.tokenizer, _card(shape, config, figures))
    speed = result.tokens / result.seconds if result.seconds else 0.0
    training = {"train_loss": result.last["train/loss"], "train_seconds": result.seconds, "tokens_per_second": speed}
    compared = {"prediction": expected.table(figures.get("loss"), result.seconds)}
    return Report(figures | training | expected.metrics(), compared, samples=_samples(model, config, data))


def _costs(config: PretrainConfig, shape: ModelConfig, machine: Machine) -> str:
    """What the model costs on each rank, before any of it is allocated."""
    sequences = -(-config.batch_sequences // config.passes) * machine.lanes
    memory = shape.memory(sequences, config.optimizer.name, machine.precision)
    return (
        f"{shape.architecture}: {shape.parameters():,} parameters, {shape.flops_per_token():,} FLOPs a token, about "
        f"{memory.total / 1e9:.2f} GB to train (weights {memory.weights / 1e9:.2f}, gradients "
        f"{memory.gradients / 1e9:.2f}, optimizer {memory.optimizer / 1e9:.2f}, activations "
        f"{memory.activations / 1e9:.2f})"
    )


def _expect(config: PretrainConfig, shape: ModelConfig, data: Shards, machine: Machine, ranks: Ranks) -> Prediction:
    """What the run should reach and take, before it begins."""
    options = OptimizerOptions(**config.optimizer.model_dump())
    size = {"steps": config.steps, "sequences": config.batch_sequences, "ranks": ranks.world}
    seconds = expected_seconds(shape, machine, options, **size)
    tokens = config.steps * config.batch_sequences * shape.context
    distinct = distinct_tokens(data.facts, len(data.tokens("train")))
    return predict(shape, tokens, distinct, config.law.build(), seconds)


def _train(
    model: Transformer, config: PretrainConfig, data: Shards, machine: Machine, ranks: Ranks, scratch: Path, emit: Emit
) -> Fit:
    optimizer = OptimizerOptions(**config.optimizer.model_dump())
    return fit(
        model,
        batch=batches(config, data, model.config.context),
        objective=next_token_loss_on(machine, config.z_loss),
        optimizer=lambda trained: make_optimizer(trained, optimizer),
        schedule=make_schedule(steps=config.steps, **config.schedule.model_dump()),
        options=LoopOptions.of(
            config,
            machine,
            flops_per_token=model.config.flops_per_token(),
            keep_best_by="validation/loss" if config.keep_best else None,
        ),
        scratch=scratch,
        emit=emit,
        evaluate=lambda model: _glance(model, data, config.evaluate_tokens, machine),
        precision=machine.make_precision(),
        ranks=ranks,
    )


def batches(config: PretrainConfig, data: Shards, context: int) -> PageBatches:
    """Windows of the training pages and, where configured, of the training dialogues."""
    tokens = data.tokens("train")
    pages = Windows(lambda _: tokens, context, config.seed)
    dialogues = None
    if config.dialogue_share:
        found = data.dialogues("train")
        if len(found.offsets) < 2:
            raise BadInput("pretrain.dialogue_share: the shards hold no training dialogues; set it to 0")
        stream = shuffled_stream(found.tokens, found.offsets, config.seed)
        dialogues = Windows(stream, context, config.seed, stream=1)
    rows, passes = config.batch_sequences, config.passes
    return PageBatches(pages, dialogues, config.dialogue_share, rows, passes, vocab_size=data.vocab_size)


def _glance(model: Transformer, data: Shards, tokens: int, machine: Machine) -> dict[str, float]:
    """Loss on about `tokens` tokens of held-out pages."""
    nats, bits = glance(model, data, tokens, lanes=machine.lanes)
    return {} if math.isnan(nats) else {"validation/loss": nats, "validation/bits_per_byte": bits}


def _measure(model: Transformer, data: Shards, machine: Machine) -> dict[str, float]:
    """Loss and bits per byte over every token of the held-out pages."""
    stream, offsets = data.tokens("validation"), data.offsets("validation")
    if len(offsets) < 2:
        return {}
    documents = [stream[start:stop] for start, stop in itertools.pairwise(offsets)]
    nats, scored = document_nats(model, documents, data.tokenizer.end_id, lanes=machine.lanes)
    return {
        "loss": nats / scored,
        "bits_per_byte": bits_per_byte(nats, data.text_bytes("validation")),
        "validation_tokens": float(scored),
    }


def _samples(model: Transformer, config: PretrainConfig, data: Shards) -> list[dict[str, str]]:
    tokenizer = data.tokenizer
    prompts = [[tokenizer.end_id, *tokenizer.encode(text)] for text in config.sample_prompts]
    drawn = generate(
        model,
        prompts,
        max_new_tokens=config.sample_tokens,
        temperature=0.8,
        top_p=0.95,
        stop_ids={tokenizer.end_id},
        seed=config.seed,
    )
    return [
        {"prompt": text, "text": tokenizer.decode([t for t in answers[0].tokens if t != tokenizer.end_id])}
        for text, answers in zip(config.sample_prompts, drawn, strict=True)
    ]


def _facts(shape: ModelConfig, config: PretrainConfig, figures: Mapping[str, float]) -> dict[str, object]:
    return {"model": shape.to_dict(), "steps": config.steps, "seed": config.seed, "figures": dict(figures)}


def _card(shape: ModelConfig, config: PretrainConfig, figures: Mapping[str, float]) -> str:
    """The model card."""
    lines = [
        "# Base model",
        "",
        f"A {shape.architecture} language model with {shape.parameters():,} parameters: {shape.layers} layers, width "
        f"{shape.width}, {shape.heads} heads, context {shape.context}, vocabulary {shape.vocab_size:,}.",
        "",
        f"Trained from random weights for {config.steps:,} steps ({round(figures['tokens_seen']):,} tokens) with "
        f"{config.optimizer.name}. It continues text; it was not tuned to answer or to be safe.",
        "",
    ]
    if "bits_per_byte" in figures:
        lines += [f"Held-out pages: {figures['bits_per_byte']:.4f} bits per byte.", ""]
    if config.dialogue_share:
        share = f"{config.dialogue_share:.0%}"
        lines += [f"{share} of the training windows were dialogues (questions with answers), the rest pages.", ""]
    return "\n".join(lines)

"""The stage sft: a base model and dialogues in, a chat model out. The loss counts answers only."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from llm_core.artifacts import new_product
from llm_core.contract import BadInput, Emit, Report
from llm_core.data.dialogue import stop_ids
from llm_core.data.shards import Shards
from llm_core.model.checkpoint import load_model, save_model
from llm_core.model.lora import LoraOptions, add_lora, merge_lora, save_adapter
from llm_core.model.sampling import generate
from llm_core.model.transformer import Transformer
from llm_core.settings.sft import SftConfig
from llm_core.train.batches import DialogueBatches, Windows, collate, next_token_loss, next_token_loss_on
from llm_core.train.distributed import Ranks, cores_of_a_rank, join, ranks_to_start
from llm_core.train.heldout import glance, spread
from llm_core.train.launch import run_ranks
from llm_core.train.loop import Fit, LoopOptions, fit
from llm_core.train.machine import Machine, prepare
from llm_core.train.optim import OptimizerOptions, make_optimizer
from llm_core.train.schedule import make_schedule

LOOKED_AT = 256
"""Held-out dialogues of each kind that an evaluation looks at."""
PAGE_TOKENS = 10_000
"""Tokens of held-out pages that an evaluation looks at."""


def run(config: SftConfig, *, base: Path, shards: Path, out: Path, scratch: Path, emit: Emit) -> Report:
    """Tune the base model, all its weights or low-rank additions to them, on the training dialogues."""
    if start := ranks_to_start(config):
        paths = {"base": base, "shards": shards, "out": out, "scratch": scratch}
        return Report(**run_ranks(__name__, config.model_dump(mode="json"), paths, start, emit))
    ranks = join(config.parallel)
    data = Shards.open(shards)
    model = load_model(base)
    dropout = model.config.dropout or (config.lora is not None and config.lora.dropout)
    lanes = 1 if dropout or ranks.world > 1 else config.passes
    machine = prepare(cores_of_a_rank(config.threads), config.device, config.precision, lanes)
    model.to(machine.device)
    _check_vocabulary(model, base, data)
    held_out = HeldOut(data, model.config.context)
    lora = None if config.lora is None else LoraOptions(**config.lora.model_dump())
    if lora is not None:
        torch.manual_seed(config.seed)
        add_lora(model, lora)
    result = _train(model, config, data, held_out, machine, ranks, scratch, emit)
    if not ranks.first:
        return Report({})
    figures = held_out.figures(model)
    summary = {name.removeprefix("validation/"): value for name, value in figures.items()}
    with new_product(out, "chat", {"steps": result.steps, "seed": config.seed, "figures": summary}) as folder:
        if lora is not None:
            save_adapter(model, folder / "adapter", lora)
            merge_lora(model)
        save_model(model, folder, data.tokenizer, _card(model, config, result, summary))
    training = {"train_loss": result.last.get("train/loss", float("nan")), "train_seconds": result.seconds}
    return Report(summary | training | {"steps": result.steps}, samples=held_out.samples(model, config))


def _check_vocabulary(model: Transformer, base: Path, data: Shards) -> None:
    """Ids of another tokenizer would be other words, whatever their number."""
    if model.config.vocab_size < data.vocab_size:
        sizes = f"{data.vocab_size} tokens, the base model knows {model.config.vocab_size}"
        raise BadInput(f"shards: the tokenizer has {sizes}; run pretrain on these shards")
    data.require_tokenizer(base)


def _train(
    model: Transformer,
    config: SftConfig,
    data: Shards,
    held_out: HeldOut,
    machine: Machine,
    ranks: Ranks,
    scratch: Path,
    emit: Emit,
) -> Fit:
    optimizer = OptimizerOptions(**config.optimizer.model_dump())
    options = LoopOptions.of(
        config,
        machine,
        flops_per_token=model.config.flops_per_token(),
        compiled=config.compile == "on",  # dialogues come in many lengths: each would be compiled anew
        keep_best_by=None if config.patience is None else "validation/loss",
        patience=config.patience,
    )
    return fit(
        model,
        batch=batches(config, data, model.config.context),
        objective=next_token_loss_on(machine),
        optimizer=lambda trained: make_optimizer(trained, optimizer),
        schedule=make_schedule(steps=config.steps, **config.schedule.model_dump()),
        options=options,
        scratch=scratch,
        emit=emit,
        evaluate=held_out.figures,
        precision=machine.make_precision(),
        ranks=ranks,
    )


def batches(config: SftConfig, data: Shards, context: int) -> DialogueBatches:
    """What each step takes: problems and other dialogues in the configured proportion, or all alike, and pages."""
    dialogues = data.dialogues("train")
    count, taken_by_pages = len(dialogues), round(config.batch_dialogues * config.page_share)
    size = config.batch_dialogues - taken_by_pages
    if count < 1:
        raise BadInput("shards: no training dialogues; give acquire a source that has some")
    groups = [(np.arange(count), size)]
    problem = dialogues.kind_names.index("problem") if "problem" in dialogues.kind_names else -1
    is_problem = dialogues.kinds == problem
    if config.problem_share is not None and is_problem.any() and not is_problem.all():
        taken = round(size * config.problem_share)
        groups = [(np.flatnonzero(is_problem), taken), (np.flatnonzero(~is_problem), size - taken)]
    tokens = data.tokens("train")
    return DialogueBatches(
        dialogues.tokens,
        dialogues.mask,
        dialogues.offsets,
        groups,
        context=context,
        seed=config.seed,
        parts=config.passes,
        packed=config.packing,
        pages=(Windows(lambda _: tokens, context, config.seed, stream=3), taken_by_pages) if taken_by_pages else None,
    )


class HeldOut:
    """Held-out dialogues: loss by kind, share of problems answered right, and answers to look at."""

    def __init__(self, data: Shards, context: int) -> None:
        self.data, self.tokenizer, self.context = data, data.tokenizer, context
        self.stops = stop_ids(data.tokenizer)
        found = data.dialogues("validation")
        self.by_kind: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
        for index, name in enumerate(found.kind_names):
            members = np.flatnonzero(found.kinds == index)
            chosen = [members[place] for place in spread(len(members), LOOKED_AT)] if len(members) else []
            cuts = [slice(int(found.offsets[i]), int(found.offsets[i + 1])) for i in chosen]
            pieces = [(np.asarray(found.tokens[cut]), np.asarray(found.mask[cut])) for cut in cuts]
            usable = [(tokens, mask) for tokens, mask in pieces if len(tokens) <= context and mask.any()]
            if usable:
                self.by_kind[name] = usable

    @torch.no_grad()
    def figures(self, model: Transformer) -> dict[str, float]:
        """Nats for each answer token, over all kinds and by kind, greedy exact answers to the problems, and bits per
        byte of some held-out pages, which tuning makes worse."""
        out: dict[str, float] = {}
        total, count = 0.0, 0.0
        for name, dialogues in self.by_kind.items():
            ordered = sorted(dialogues, key=lambda dialogue: len(dialogue[0]))
            nats, answers = 0.0, 0.0
            for start in range(0, len(ordered), 64):
                chunk = ordered[start : start + 64]
                loss = next_token_loss(model, collate([t for t, _ in chunk], [m for _, m in chunk], self.context))
                nats, answers = nats + float(loss.total), answers + loss.count
            out[f"validation/{name}_loss"] = nats / answers
            total, count = total + nats, count + answers
        if count:
            out["validation/loss"] = total / count
        if "problem" in self.by_kind:
            out["validation/problem_accuracy"] = self._accuracy(model)
        bits = glance(model, self.data, PAGE_TOKENS)[1]
        if not math.isnan(bits):
            out["validation/page_bits_per_byte"] = bits
        return out

    def _accuracy(self, model: Transformer) -> float:
        """Share of held-out problems whose greedy answer is the right one, token for token."""
        asked = [_first_answer(*dialogue) for dialogue in self.by_kind["problem"]]
        longest = max(len(answer) for _, answer in asked)
        drawn = generate(
            model, [prompt for prompt, _ in asked], max_new_tokens=longest, temperature=0, stop_ids=self.stops
        )
        right = sum(rows[0].tokens == answer for rows, (_, answer) in zip(drawn, asked, strict=True))
        return right / len(asked)

    def samples(self, model: Transformer, config: SftConfig) -> list[dict[str, str]]:
        """Greedy answers to some held-out questions of each kind, with the true ones."""
        out = []
        for name, dialogues in self.by_kind.items():
            asked = [_first_answer(*dialogues[i]) for i in spread(len(dialogues), config.sample_count)]
            prompts = [prompt[: self.context - 1] for prompt, _ in asked[: config.sample_count]]
            drawn = generate(model, prompts, max_new_tokens=config.sample_tokens, temperature=0, stop_ids=self.stops)
            for prompt, (_, answer), rows in zip(prompts, asked, drawn, strict=False):
                texts = {"prompt": self._text(prompt), "text": self._text(rows[0].tokens), "true": self._text(answer)}
                out.append({"kind": name} | texts)
        return out

    def _text(self, tokens: list[int]) -> str:
        special = set(self.tokenizer.specials.values())
        return self.tokenizer.decode([token for token in tokens if token not in special]).strip()


def _first_answer(tokens: np.ndarray, mask: np.ndarray) -> tuple[list[int], list[int]]:
    """The tokens before the first answer, and that answer with its closing token."""
    start = int(np.argmax(mask))
    rest = np.flatnonzero(mask[start:] == 0)
    stop = start + int(rest[0]) if len(rest) else len(tokens)
    return tokens[:start].tolist(), tokens[start:stop].tolist()


def _card(model: Transformer, config: SftConfig, result: Fit, figures: Mapping[str, float]) -> str:
    """The model card."""
    shape = model.config
    lines = [
        "# Chat model",
        "",
        f"A {shape.architecture} language model with {shape.parameters():,} parameters, tuned to answer: "
        f"{result.steps:,} steps of {config.batch_dialogues} dialogues, loss on answers only.",
        "",
    ]
    if config.lora is not None:
        lines += [f"Trained by LoRA of rank {config.lora.rank}; `adapter/` holds the additions in PEFT's layout.", ""]
    if "problem_accuracy" in figures:
        lines += [f"Held-out problems answered right (greedy): {figures['problem_accuracy']:.1%}.", ""]
    return "\n".join(
        [*lines, "It was tuned for its training domain and makes mistakes; it was not tuned to be safe.", ""]
    )

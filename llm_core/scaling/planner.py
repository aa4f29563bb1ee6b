"""What a budget buys: the model's size, its tokens, batch, learning rate, time, memory and expected loss.

The sizes form one family (`recipe`): a width, and the depth that goes with it. For each of them the budget gives the
tokens, a scaling law the loss, and the plan is the size with the lowest one that fits into memory. Costs are exact
counts of the model's parameters and FLOPs, attention and output head included, not 6 N D: in small models that differs
by half.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from llm_core.contract import BadInput
from llm_core.model.config import ModelConfig
from llm_core.scaling import recipe
from llm_core.scaling.devices import GIB, Device
from llm_core.scaling.laws import EPOCH, KAPLAN, PUBLISHED, Law

FEWEST_STEPS = 50
MOST_EPOCHS = 4.0
"""Passes over the corpus: up to four, a repeated token is worth nearly a fresh one (Muennighoff et al. 2023)."""
NEGLIGIBLE = 1.002
"""Between two plans whose losses differ by less than this factor, the cheaper one is better."""
USABLE_MEMORY = 0.9
"""Share of the device's memory that a plan fills; the rest is for what nobody counts."""


@dataclass(frozen=True)
class Budget:
    """What may be spent: exactly one of hours, FLOPs and tokens. Raises `BadInput`."""

    hours: float | None = None
    flops: float | None = None
    tokens: float | None = None

    def __post_init__(self) -> None:
        given = {name: value for name, value in vars(self).items() if value is not None}
        if len(given) != 1:
            raise BadInput("plan: give exactly one of --hours, --flops and --tokens")
        for name, value in given.items():
            if not (math.isfinite(value) and value > 0):
                raise BadInput(f"--{name} {value}: must be a number above 0")

    def __str__(self) -> str:
        if self.hours is not None:
            return f"{self.hours:g} hours"
        return f"{self.flops:.3g} FLOPs" if self.flops is not None else f"{self.tokens:,.0f} tokens"


@dataclass(frozen=True)
class Corpus:
    """What there is to train on: tokens of one pass (None: as many as wanted) and ids of the vocabulary."""

    tokens: int | None = None
    vocab_size: int | None = None
    """None: the one that goes with the model's size, by `recipe.vocabulary_for`."""
    source: str = "no shards at hand: fresh tokens without end"


@dataclass(frozen=True)
class Plan:
    """What to run and what to expect of it. `loss` in nats per token, `memory` in bytes of tensors."""

    budget: str
    device: Device
    shape: ModelConfig
    tokens: int
    steps: int
    batch_sequences: int
    passes: int
    learning_rate: float
    seconds: float
    memory: int
    law: Law
    loss: float
    corpus: Corpus
    notes: tuple[str, ...] = ()

    @property
    def flops(self) -> float:
        """FLOPs of the whole training."""
        return float(self.tokens) * self.shape.flops_per_token()

    @property
    def epochs(self) -> float | None:
        """Passes over the corpus; None where it has no end."""
        return self.tokens / self.corpus.tokens if self.corpus.tokens else None


@dataclass(frozen=True)
class _Choice:
    """A size, the tokens that the budget gives it, and whether the corpus gave fewer than the budget."""

    shape: ModelConfig
    tokens: float
    seconds: float
    loss: float
    limited: bool


def make_plan(
    budget: Budget,
    device: Device,
    corpus: Corpus | None = None,
    *,
    law: Law = EPOCH,
    context: int | None = None,
    architecture: str = "qwen3",
    most_epochs: float = MOST_EPOCHS,
) -> Plan:
    """The best use of `budget` on `device`. `law` decides; a corpus caps the tokens at `most_epochs` passes.

    `context` None: by the size of the budget. Raises `BadInput` if no size of the family fits into the device's memory,
    or if the budget does not last for 50 steps of one sequence.
    """
    corpus = corpus or Corpus()
    context = context or recipe.context_for(_rough_flops(budget, device, law))
    room, lanes = USABLE_MEMORY * device.memory, max(1, device.cores)
    sizes = list(recipe.family(corpus.vocab_size, context, architecture))
    fitting = [shape for shape in sizes if recipe.training_memory(shape, 1, lanes, device.precision) <= room]
    if not fitting:
        raise BadInput(f"plan: not even the smallest model fits into the memory of {device.name}")
    choices = [_choice(shape, budget, device, corpus, law, most_epochs) for shape in fitting]
    usable = [choice for choice in choices if choice.tokens >= FEWEST_STEPS * context]
    if not usable:
        raise BadInput(f"plan: {budget} on {device.name} is too little for {FEWEST_STEPS} steps of one sequence")
    best = _best(usable, budget, law, corpus)
    notes = tuple(_notes(best, corpus, law, largest=best.shape == fitting[-1] and fitting != sizes))
    return _detailed(best, budget, device, corpus, law, notes)


def _rough_flops(budget: Budget, device: Device, law: Law) -> float:
    if budget.flops is not None:
        return budget.flops
    if budget.tokens is not None:
        return 6 * budget.tokens * law.best_size(budget.tokens)
    return (budget.hours or 0.0) * 3600 * device.flops_per_second(recipe.model_of(256, None, 256))


def _choice(
    shape: ModelConfig, budget: Budget, device: Device, corpus: Corpus, law: Law, most_epochs: float
) -> _Choice:
    speed = device.tokens_per_second(shape)
    if budget.tokens is not None:
        tokens = budget.tokens
    elif budget.flops is not None:
        tokens = budget.flops / shape.flops_per_token()
    else:
        tokens = (budget.hours or 0.0) * 3600 * speed
    kept = min(tokens, corpus.tokens * most_epochs if corpus.tokens else math.inf)
    return _Choice(shape, kept, kept / speed, law.loss(shape.parameters(), kept, corpus.tokens), kept < tokens)


def _best(choices: Sequence[_Choice], budget: Budget, law: Law, corpus: Corpus) -> _Choice:
    if budget.tokens is not None:  # any larger model would be better, so take the one these tokens are best for
        wanted = math.log(law.best_size(min(choices[0].tokens, corpus.tokens or math.inf)))
        return min(choices, key=lambda choice: abs(math.log(choice.shape.parameters()) - wanted))
    limit = min(choice.loss for choice in choices) * NEGLIGIBLE
    good = [choice for choice in choices if choice.loss <= limit]
    return min(good, key=lambda choice: (round(math.log(choice.seconds), 2), choice.loss))


def _detailed(
    choice: _Choice, budget: Budget, device: Device, corpus: Corpus, law: Law, notes: tuple[str, ...]
) -> Plan:
    shape, context, room = choice.shape, choice.shape.context, USABLE_MEMORY * device.memory
    most_rows = int(choice.tokens / context / FEWEST_STEPS)
    rows = min(max(device.cores, round(recipe.batch_tokens(choice.tokens) / context), 1), most_rows)
    lanes = min(max(1, device.cores), rows)

    def memory(passes: int) -> int:
        return recipe.training_memory(shape, -(-rows // passes), lanes, device.precision)

    passes = next((passes for passes in range(lanes, rows) if memory(passes) <= room), rows)
    steps = max(1, round(choice.tokens / (rows * context)))
    tokens = steps * rows * context
    return Plan(
        budget=str(budget),
        device=device,
        shape=shape,
        tokens=tokens,
        steps=steps,
        batch_sequences=rows,
        passes=passes,
        learning_rate=float(f"{recipe.learning_rate(shape, tokens):.2g}"),
        seconds=tokens / device.tokens_per_second(shape),
        memory=memory(passes),
        law=law,
        loss=law.expected(shape.parameters(), tokens, corpus.tokens, shape.vocab_size),
        corpus=corpus,
        notes=notes,
    )


def _notes(choice: _Choice, corpus: Corpus, law: Law, *, largest: bool) -> Iterator[str]:
    if law in PUBLISHED:
        yield (
            "The law is of another corpus and tokenizer: read its loss as how it moves with size and data. A ladder of "
            "small runs on your own shards (the flow scaling) gives a law of your own."
        )
    if choice.shape.parameters() < law.smallest:
        yield (
            f"The law was fitted on models of {law.smallest:,.0f} parameters and more and is extrapolated here; a loss "
            "above that of guessing, ln V, is cut there."
        )
    if corpus.tokens and choice.limited:
        wanted = law.optimum(6.0 * choice.shape.parameters() * choice.tokens)[1]
        yield (
            f"The corpus is the limit, not the budget: its {corpus.tokens:,} tokens are read "
            f"{choice.tokens / corpus.tokens:.1f} times, and more passes bring little and overfit (Muennighoff et al. "
            f"2023). The compute that is used would be best spent on {max(wanted, choice.tokens):,.0f} fresh tokens."
        )
    elif corpus.tokens and choice.tokens > corpus.tokens:
        yield (
            f"The corpus is read {choice.tokens / corpus.tokens:.1f} times; repeated tokens count for what they are "
            "worth by Muennighoff et al. 2023."
        )
    if largest:
        yield "This is the largest model of the family that fits into the device's memory."


def overrides(plan: Plan) -> dict[str, Any]:
    """Sections of params.yaml that make an experiment of the plan; the law travels along, for the prediction."""
    shape = plan.shape
    sections: dict[str, Any] = {
        "pretrain": {
            "model": {
                "preset": shape.architecture,
                **{name: getattr(shape, name) for name in ("layers", "heads", "width", "context")},
            },
            "steps": plan.steps,
            "batch_sequences": plan.batch_sequences,
            "passes": plan.passes,
            "evaluate_every": max(1, plan.steps // 4),
            "optimizer": {"learning_rate": plan.learning_rate},
            "law": {name: getattr(plan.law, name) for name in ("name", "E", "A", "B", "alpha", "beta")},
        }
    }
    if plan.corpus.vocab_size is None:
        sections["tokenize"] = {"vocab_size": shape.vocab_size}
    return sections


def plan_rows(plan: Plan) -> list[dict[str, str]]:
    """The plan for people: what, how much, and where the figure is from."""
    shape, device = plan.shape, plan.device
    law, counted = f"{plan.law.name} ({plan.law.source})", "counted from the model's shape"
    size = f"{shape.layers} layers, {shape.heads} heads, width {shape.width}, context {shape.context}"
    words = f"vocabulary {shape.vocab_size:,}"
    words_source = recipe.VOCABULARY_LAW if plan.corpus.vocab_size is None else plan.corpus.source
    passes = f", {plan.epochs:.2f} passes over {plan.corpus.tokens:,}" if plan.epochs else ""
    batch = f"{plan.batch_sequences} sequences in {plan.passes} passes, {plan.steps:,} steps"
    rows = [
        ("budget", f"{plan.budget} on {device.name}", device.source),
        ("model", f"{shape.architecture}, {shape.parameters():,} parameters: {size}", f"lowest loss by {law}"),
        ("tokenizer", words, words_source),
        ("tokens", f"{plan.tokens:,}{passes}", plan.corpus.source),
        ("batch", batch, recipe.STEP_LAW),
        ("learning rate", f"{plan.learning_rate:g} for AdamW, Muon's as in the settings", recipe.STEP_LAW),
        ("compute", f"{plan.flops:.3g} FLOPs, {shape.flops_per_token():,} a token", counted),
        ("time", f"{_duration(plan.seconds)} at {device.tokens_per_second(shape):,.0f} tokens/s", device.source),
        ("memory", f"{plan.memory / GIB:.2f} of {device.memory / GIB:.0f} GiB", f"{counted}; activations estimated"),
        ("expected loss", f"{plan.loss:.3f} nats per token", law),
    ]
    return [{"what": what, "value": value, "source": source} for what, value, source in rows]


def law_rows(plan: Plan) -> list[dict[str, Any]]:
    """What the plan's law and each published one say of it: the loss, and the best size and tokens for its FLOPs.

    Kaplan et al. count parameters without embeddings, and so does that row.
    """
    shape, rows = plan.shape, []
    for law in dict.fromkeys((plan.law, *PUBLISHED)):
        loss = law.loss(shape.parameters(), plan.tokens, plan.corpus.tokens)
        rows.append((law.name, loss, *law.optimum(plan.flops), law.source))
    loss = KAPLAN.loss(recipe.body_parameters(shape), plan.tokens)
    rows.append((KAPLAN.name, loss, *KAPLAN.optimum(plan.flops), KAPLAN.source))
    names = ("law", "loss", "best_parameters", "best_tokens", "source")
    return [dict(zip(names, row, strict=True)) for row in rows]


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"

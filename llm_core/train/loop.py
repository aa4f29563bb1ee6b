"""The training loop, one for pretrain, sft, reward and align: they differ by batches and objective.

Notable:
- A batch is a pure function of its number and torch's random state is set from (seed, step) before each step, so a
  resume point is weights, optimiser state and the step: a run killed anywhere ends with the same bytes.
- The batches of a step are independent, so on a CPU they may run in threads side by side, each with one core: small
  products spread over cores badly, whole passes do not. Gradients are added in order: same bytes as one by one.
- The objective gives a sum and what to divide it by; gradients are accumulated as sums and divided once, so ragged
  batches count every token equally, however they are cut.
- The resume point is written before an evaluation, never after it only.
- A step whose gradient is not finite is left out and counted; many in a row end the run with a sentence.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from llm_core.contract import Emit, Metric, Note, Progress, Resumed, Stop
from llm_core.train.optim import Optimizers
from llm_core.train.resume import read_tensors, write_tensors
from llm_core.train.schedule import Schedule

ModelT = TypeVar("ModelT", bound=nn.Module)
BatchT = TypeVar("BatchT")

RESUME, BEST = "resume.safetensors", "best.safetensors"
MOST_SKIPPED = 10


@dataclass(frozen=True, slots=True)
class Loss:
    """What an objective returns: the sum to minimise, the count to divide it by (tokens or pairs), and figures.

    `tokens`: how many tokens went through the model, for the speed. Figures are plotted beside the loss.
    """

    total: Tensor
    count: float
    figures: Mapping[str, float] = field(default_factory=dict)
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class LoopOptions:
    """How long and how carefully to train."""

    steps: int
    seed: int = 0
    clip: float = 1.0
    """Largest global gradient norm."""
    accumulate: int = 1
    """Batches of one step."""
    lanes: int = 1
    """Batches that run side by side in threads, for a model without dropout (torch's random state is shared)."""
    evaluate_every: int = 0
    """Steps between evaluations; 0: only after the last step."""
    save_every_seconds: float = 30.0
    keep_best_by: str | None = None
    """Name of the evaluated figure whose lowest value marks the weights to end with. None: the last weights."""
    patience: int | None = None
    """Evaluations without a better `keep_best_by` before training ends."""
    metric_every: int = 0
    """Steps between points of the curves; 0: about 500 points in all."""
    prefix: str = "train"
    """Section of the curves' names."""


@dataclass(slots=True)
class Fit:
    """How training went. `last` holds the latest figures of training and evaluation; `best` those of the best."""

    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    skipped: int = 0
    stale: int = 0
    evaluated: int = -1
    last: dict[str, float] = field(default_factory=dict)
    best: dict[str, float] = field(default_factory=dict)


class _Run(Generic[ModelT, BatchT]):
    """The state of one call of `fit`."""

    def __init__(
        self,
        model: ModelT,
        batch: Callable[[int], BatchT],
        objective: Callable[[ModelT, BatchT], Loss],
        optimizer: Optimizers,
        schedule: Schedule,
        options: LoopOptions,
        scratch: Path,
        emit: Emit,
    ) -> None:
        self.model, self.batch, self.objective, self.optimizer = model, batch, objective, optimizer
        self.schedule, self.options, self.scratch, self.emit = schedule, options, scratch, emit
        self.fit = Fit()
        self.skipped_in_a_row = 0
        self.metric_every = options.metric_every or max(1, options.steps // 500)
        self.pool: ThreadPoolExecutor | None = None

    def resume(self) -> None:
        """Take over the resume point of an earlier, killed call, if there is one."""
        found = read_tensors(self.scratch / RESUME)
        if found is None:
            return
        tensors, record = found
        self.model.load_state_dict({n[6:]: value for n, value in tensors.items() if n.startswith("model.")})
        self.optimizer.load({n[6:]: value for n, value in tensors.items() if n.startswith("optim.")})
        self.fit = Fit(**record)
        self.emit(Resumed(self.fit.steps))

    def save(self) -> None:
        """Write the resume point."""
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        tensors |= {f"optim.{name}": value for name, value in self.optimizer.tensors().items()}
        record: dict[str, Any] = {name: getattr(self.fit, name) for name in Fit.__slots__}
        write_tensors(self.scratch / RESUME, tensors, record)

    def step(self) -> None:
        """One optimiser step; `self.fit` then tells of it."""
        started, step = time.perf_counter(), self.fit.steps
        torch.manual_seed((self.options.seed << 32) + step)
        self.model.train()
        numbers = range(step * self.options.accumulate, (step + 1) * self.options.accumulate)
        losses = self._one_by_one(numbers) if self.pool is None else self._side_by_side(self.pool, numbers)
        count = sum(loss.count for loss in losses)
        gradients = [p.grad for p in self.optimizer.parameters if p.grad is not None]
        norm = float(torch.nn.utils.get_total_norm(gradients)) / count
        factor = self.schedule(step)
        if math.isfinite(norm):
            torch._foreach_mul_(gradients, min(1.0, self.options.clip / (norm + 1e-6)) / count)
            self.optimizer.step(factor, self.pool)
            self.skipped_in_a_row = 0
        else:
            self._skip(step)
        seconds, tokens = time.perf_counter() - started, sum(loss.tokens for loss in losses)
        self.fit.steps += 1
        self.fit.tokens += tokens
        self.fit.seconds += seconds
        figures = {name: sum(loss.figures[name] for loss in losses) / len(losses) for name in losses[0].figures}
        figures["loss"] = sum(float(loss.total) for loss in losses) / count
        figures |= {"learning_rate": factor * self._base_rate(), "gradient_norm": norm}
        figures["tokens_per_second"] = tokens / seconds
        self.fit.last |= {f"{self.options.prefix}/{name}": value for name, value in figures.items()}

    def _one_by_one(self, numbers: Sequence[int]) -> list[Loss]:
        self.optimizer.zero_grad()
        losses = []
        for number in numbers:
            loss = self.objective(self.model, self.batch(number))
            loss.total.backward()  # type: ignore[no-untyped-call]
            losses.append(_detached(loss))
        return losses

    def _side_by_side(self, pool: ThreadPoolExecutor, numbers: Sequence[int]) -> list[Loss]:
        results = list(pool.map(self._gradients, numbers))
        summed = results[0][1]
        for _, gradients in results[1:]:
            summed = list(torch._foreach_add(summed, gradients))
        for parameter, gradient in zip(self.optimizer.parameters, summed, strict=True):
            parameter.grad = gradient
        return [loss for loss, _ in results]

    def _gradients(self, number: int) -> tuple[Loss, list[Tensor]]:
        loss = self.objective(self.model, self.batch(number))
        gradients = torch.autograd.grad(loss.total, self.optimizer.parameters, materialize_grads=True)
        return _detached(loss), list(gradients)

    def _skip(self, step: int) -> None:
        self.fit.skipped += 1
        self.skipped_in_a_row += 1
        self.emit(Note(f"step {step}: the gradient is not finite; step left out"))
        if self.skipped_in_a_row >= MOST_SKIPPED:
            raise FloatingPointError(
                f"{MOST_SKIPPED} steps in a row without a finite gradient: lower the learning rate"
            )

    def _base_rate(self) -> float:
        return (self.optimizer.muon or self.optimizer.adamw)[0].rate

    def tell(self) -> None:
        """Progress of this step, and now and then a point of the curves."""
        last, prefix = self.fit.last, self.options.prefix
        if self.fit.steps % self.metric_every == 0 or self.fit.steps == self.options.steps:
            self.emit(Metric(self.fit.steps, {k: v for k, v in last.items() if k.startswith(f"{prefix}/")}))
        left = self.fit.seconds / self.fit.steps * (self.options.steps - self.fit.steps)
        speed = self.fit.tokens / self.fit.seconds if self.fit.seconds else 0.0
        figures = {"loss": last[f"{prefix}/loss"], "tokens/s": round(speed), "seconds left": round(left)}
        self.emit(Progress(self.fit.steps, self.options.steps, "steps", figures))

    def evaluate(self, evaluate: Callable[[ModelT], Mapping[str, float]]) -> None:
        """Measure, remember the best, and say so. Evaluates a step once, also across a resume."""
        self.model.eval()
        with torch.no_grad():
            figures = dict(evaluate(self.model))
        name = self.options.keep_best_by
        self.fit.last |= figures
        self.fit.evaluated = self.fit.steps
        if name is None or not self.fit.best or figures[name] < self.fit.best[name]:
            self.fit.best, self.fit.stale = figures | {"step": float(self.fit.steps)}, 0
            if name is not None:
                write_tensors(self.scratch / BEST, self.model.state_dict(), self.fit.best)
        else:
            self.fit.stale += 1
        self.emit(Metric(self.fit.steps, figures))

    def finish(self) -> Fit:
        """Put the best weights into the model where they were asked for."""
        if self.options.keep_best_by is not None and self.fit.best.get("step") != self.fit.steps:
            found = read_tensors(self.scratch / BEST)
            if found is not None:
                self.model.load_state_dict(found[0])
        self.model.eval()
        self.optimizer.zero_grad()
        return self.fit


def _detached(loss: Loss) -> Loss:
    return Loss(loss.total.detach(), loss.count, loss.figures, loss.tokens)


def fit(
    model: ModelT,
    *,
    batch: Callable[[int], BatchT],
    objective: Callable[[ModelT, BatchT], Loss],
    optimizer: Optimizers,
    schedule: Schedule,
    options: LoopOptions,
    scratch: Path,
    emit: Emit,
    evaluate: Callable[[ModelT], Mapping[str, float]] | None = None,
) -> Fit:
    """Train `model` for `options.steps` steps, from the resume point in `scratch` if there is one.

    `batch(n)` gives batch number n and must depend on n alone. `schedule(step)` multiplies the base learning rates.
    `evaluate(model)` returns figures by name, such as {"validation/loss": 2.1}. When `emit` raises `Stop`, the resume
    point is saved and the exception passes. Ends with the best or the last weights in the model, in eval mode.
    """
    run = _Run(model, batch, objective, optimizer, schedule, options, scratch, emit)
    run.resume()
    with ThreadPoolExecutor(options.lanes) if options.lanes > 1 else nullcontext() as run.pool:
        try:
            return _train(run, evaluate)
        except Stop:
            run.save()
            raise


def _train(run: _Run[ModelT, BatchT], evaluate: Callable[[ModelT], Mapping[str, float]] | None) -> Fit:
    options, state, saved = run.options, run.fit, time.monotonic()
    while True:
        last = state.steps >= options.steps
        every = options.evaluate_every
        if (
            evaluate
            and state.steps != state.evaluated
            and (last or (state.steps and every and state.steps % every == 0))
        ):
            run.save()
            run.evaluate(evaluate)
            saved = time.monotonic()
        if last or (options.patience is not None and state.stale >= options.patience):
            return run.finish()
        run.step()
        run.tell()
        if time.monotonic() - saved >= options.save_every_seconds:
            run.save()
            saved = time.monotonic()

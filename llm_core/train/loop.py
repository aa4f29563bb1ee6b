"""The training loop, one for pretrain, sft, reward and align: they differ by batches and objective.

Notable:
- A batch is a pure function of its number, and torch's random state is set from (seed, number) before each pass, so a
  resume point is weights, optimiser state and the step: a run killed anywhere ends with the same bytes.
- The objective gives a sum and what to divide it by; gradients are accumulated as sums and divided once, so ragged
  batches count every token equally, however they are cut and whoever computes them (`gradients.py`).
- The resume point is written before an evaluation, never after it only. It does not depend on the number of ranks.
- A step whose gradient is not finite, or whose loss is a spike, is left out and counted; many in a row end the run with
  a sentence (`guard.py`).
- On a GPU figures are fetched every `look_every` steps; nothing else in a step waits for the device.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Generic

import torch
from torch import Tensor, nn

from llm_core.contract import BadInput, Emit, Event, Metric, Note, Progress, Resumed, Stop
from llm_core.train.blocks import blocks, training_form
from llm_core.train.distributed import Ranks, local, share_muon, whole
from llm_core.train.gradients import BatchT, Loss, ModelT, OneByOne, Replicated, Sharded, SideBySide
from llm_core.train.guard import Guard
from llm_core.train.machine import FORMATS, Precision
from llm_core.train.optim import Optimizers
from llm_core.train.options import LoopOptions
from llm_core.train.parts import load, write_parts
from llm_core.train.peak import is_out_of_memory, peak_flops, peak_memory_gb
from llm_core.train.prefetch import Prefetched
from llm_core.train.resume import Points, check_settings
from llm_core.train.schedule import Schedule

__all__ = ["Fit", "LoopOptions", "Loss", "fit"]

MOST_SKIPPED = 10


@dataclass(slots=True)
class Fit:
    """How training went. `last` holds the latest figures of training and evaluation; `best` those of the best."""

    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    skipped: int = 0
    skipped_in_a_row: int = 0
    stale: int = 0
    evaluated: int = -1
    last: dict[str, float] = field(default_factory=dict)
    best: dict[str, float] = field(default_factory=dict)


@dataclass
class _Run(Generic[ModelT, BatchT]):
    """The state of one call of `fit`."""

    model: ModelT
    passes: OneByOne[ModelT, BatchT]
    optimizer: Optimizers
    schedule: Schedule
    options: LoopOptions
    scratch: Path
    emit: Emit
    evaluation: Callable[[ModelT], Mapping[str, float]] | None
    ranks: Ranks
    fit: Fit = field(default_factory=Fit)
    stopping: bool = False
    saved: tuple[int, int] = (0, -1)
    unseen: list[tuple[int, float, Tensor]] = field(default_factory=list)

    def __post_init__(self) -> None:
        options, device = self.options, self.optimizer.parameters[0].device
        self.points = Points(self.scratch, "step", options.keep_last)
        self.bests = Points(self.scratch, "best", 1)
        self.guard = Guard(device, options.spike_sigma)
        self.metric_every = options.metric_every or max(1, options.steps // 500)
        self.device, self.figure_names = device, list[str]()
        self.clock = self.last_save = time.monotonic()

    def train(self) -> Fit:
        """Steps, evaluations and saves, until the last step, a stop, or lost patience."""
        self.resume()
        options, state = self.options, self.fit
        self.clock = self.last_save = time.monotonic()
        while True:
            old = time.monotonic() - self.last_save >= options.save_every_seconds
            self.mark()
            stop, save = self.ranks.any(self.stopping or self.ranks.asked_to_stop(), old and self.ranks.first)
            last = state.steps >= options.steps
            due = last or (state.steps > 0 and options.evaluate_every > 0 and state.steps % options.evaluate_every == 0)
            evaluate = self.evaluation is not None and state.steps != state.evaluated and due
            if stop or save or evaluate:
                self.save()
            if stop:
                raise Stop
            if evaluate:
                self.evaluate()
            elif last or (options.patience is not None and state.stale >= options.patience):
                return self.finish()
            else:
                self.step()
                if len(self.unseen) >= options.look_every or state.steps == options.steps:
                    self.look()
                self.progress()

    def step(self) -> None:
        """One optimiser step."""
        step, options = self.fit.steps, self.options
        self.passes.trained.train()
        numbers = self.ranks.mine(range(step * options.accumulate, (step + 1) * options.accumulate))
        losses = self.passes(numbers, self.optimizer.parameters)
        sums = self.ranks.sum_(self._sums(losses))
        divisor = sums[1] * (self.passes.precision.scale / self.passes.mean_over)
        given = [p.grad for p in self.optimizer.parameters if p.grad is not None]
        norm = whole(torch.nn.utils.get_total_norm(given)).double() / divisor
        good = self.guard.judge(step, sums[0] / sums[1], norm)
        self._update([local(gradient) for gradient in given], divisor, norm, good, self.schedule(step))
        self.unseen.append((step + 1, self.schedule(step), torch.cat([torch.stack([norm, good.double()]), sums])))
        self.fit.steps += 1

    def _sums(self, losses: list[Loss]) -> Tensor:
        """Loss, count, tokens, passes and figures, summed over this rank's passes, on the device."""
        self.figure_names = sorted(losses[0].figures)
        told = [sum(loss.count for loss in losses), sum(loss.tokens for loss in losses), len(losses)]
        told += [sum(loss.figures[name] for loss in losses) for name in self.figure_names]
        total = torch.stack([loss.total.double() for loss in losses]).sum(0, keepdim=True)
        return torch.cat([total, torch.tensor(told, dtype=torch.float64).to(self.device, non_blocking=True)])

    def _update(self, gradients: list[Tensor], divisor: Tensor, norm: Tensor, good: Tensor, factor: float) -> None:
        """Scale and clip the gradients and take the step, or leave it out."""
        clip, pool = self.options.clip, self.passes.pool
        if self.options.look_every == 1:
            self.passes.precision.update(finite=math.isfinite(float(norm)))
            if good:
                torch._foreach_mul_(gradients, min(1.0, clip / (float(norm) + 1e-6)) / float(divisor))
                self.optimizer.step(factor, pool)
            return
        scale = torch.where(good, (clip / (norm + 1e-6)).clamp(max=1.0) / divisor, 0.0).float()
        torch._foreach_mul_(gradients, scale)
        bad = ~good
        for gradient in gradients:
            gradient.masked_fill_(bad, 0.0)  # what is not finite stays so when it is multiplied by zero
        self.optimizer.step(factor, pool)

    def look(self) -> None:
        """Fetch the figures of the steps since the last look, and tell of them."""
        if not self.unseen:
            return
        rows = torch.stack([row for _, _, row in self.unseen]).tolist()
        now = time.monotonic()
        seconds, self.clock = (now - self.clock) / len(rows), now
        unseen, self.unseen = self.unseen, []
        for (step, factor, _), row in zip(unseen, rows, strict=True):
            self._account(step, factor, row, seconds)

    def _account(self, step: int, factor: float, row: list[float], seconds: float) -> None:
        norm, good, total, count, tokens, passes, *sums = row
        state, options = self.fit, self.options
        state.tokens += round(tokens)
        state.seconds += seconds
        figures = {name: value / passes for name, value in zip(self.figure_names, sums, strict=True)}
        figures |= {"loss": total / count, "learning_rate": factor * self._base_rate(), "gradient_norm": norm}
        figures |= {"tokens_per_second": tokens / seconds, "memory_gb": peak_memory_gb(self.device)}
        if self.ranks.watch is not None and (slowest := self.ranks.watch.slowest()) is not None:
            figures |= {"slowest_rank": slowest[0], "slowest_rank_factor": slowest[1]}
        if options.flops_per_token:
            figures["mfu"] = tokens / seconds * options.flops_per_token / self._peak()
        state.last |= {f"{options.prefix}/{name}": value for name, value in figures.items()}
        if step % self.metric_every == 0 or step == options.steps:
            self.tell(Metric(step, {f"{options.prefix}/{name}": value for name, value in figures.items()}))
        state.skipped_in_a_row = 0 if good else state.skipped_in_a_row + 1
        if not good:
            state.skipped += 1
            why = (
                "the gradient is not finite" if not math.isfinite(norm) else f"the loss {total / count:.3f} is a spike"
            )
            self.tell(Note(f"step {step}: {why}; step left out"))
        if state.skipped_in_a_row >= MOST_SKIPPED:
            raise FloatingPointError(
                f"{MOST_SKIPPED} steps in a row left out, the last as {why}: lower the learning rate, or take spikes "
                "as they come with spike_sigma 0"
            )

    def _base_rate(self) -> float:
        return (self.optimizer.muon or self.optimizer.adamw)[0].rate

    def _peak(self) -> float:
        dtype = FORMATS.get(self.passes.precision.name, torch.float32)
        return self.ranks.world * peak_flops(str(self.device), dtype, self.options.lanes)

    def progress(self) -> None:
        """How far the run is, with the figures known so far."""
        state, prefix = self.fit, self.options.prefix
        figures: dict[str, float | str] = {}
        if state.seconds and f"{prefix}/loss" in state.last:
            seen = state.steps - len(self.unseen)
            left = state.seconds / seen * (self.options.steps - state.steps)
            speed = round(state.tokens / state.seconds)
            figures = {"loss": state.last[f"{prefix}/loss"], "tokens/s": speed, "seconds left": round(left)}
            if f"{prefix}/mfu" in state.last:
                figures["MFU"] = round(state.last[f"{prefix}/mfu"], 3)
        self.tell(Progress(state.steps, self.options.steps, "steps", figures))

    def tell(self, event: Event) -> None:
        """Emit, if this is the rank that speaks; a `Stop` is heeded when the step is whole."""
        try:
            if self.ranks.first:
                self.emit(event)
        except Stop:
            self.stopping = True

    def mark(self) -> None:
        """Say where this rank is, and tell what was found of slow ones."""
        if self.ranks.watch is not None:
            self.ranks.watch.turn(self.fit.steps)
            while self.ranks.watch.notes:
                self.tell(Note(self.ranks.watch.notes.pop(0)))

    def save(self) -> None:
        """Write the resume point, unless this very state is saved already."""
        self.look()
        state = self.fit
        if self.saved != (state.steps, state.evaluated):
            record = {"fit": asdict(state), "settings": self.options.identity()}
            record |= {"precision": self.passes.precision.state()}
            with self.ranks.patient("saves"):
                if self.ranks.spread:
                    write_parts(self.points, state.steps, self._tensors(), record, self.ranks)
                elif self.ranks.first:
                    self.points.write(state.steps, self._tensors().items(), record)
        self.saved = (state.steps, state.evaluated)
        self.clock = self.last_save = time.monotonic()

    def _tensors(self) -> dict[str, Tensor]:
        """What a resume point holds; the tensors are the live ones, but for the optimizer's count of its steps."""
        found = {f"model.{name}": value for name, value in self.passes.trained.state_dict().items()}
        found |= {f"optim.{name}": value for name, value in self.optimizer.tensors().items()}
        return found | {"guard.losses": self.guard.losses}

    @torch.no_grad()
    def resume(self) -> None:
        """Take over the resume point of an earlier, killed call, if there is one."""
        point = self.points.newest(self.ranks.rank, self.ranks.world)
        if point is None:
            return
        check_settings(point, self.options.identity())
        held = self._tensors()
        load(point, held, self.ranks)
        self.optimizer.load({name.removeprefix("optim."): value for name, value in held.items()})
        self.fit = Fit(**point.record["fit"])
        self.passes.precision.load(point.record["precision"])
        self.passes.gather()
        self.saved = (self.fit.steps, self.fit.evaluated)
        self.tell(Resumed(self.fit.steps))

    def evaluate(self) -> None:
        """Measure, remember the best, and say so. Evaluates a step once, also across a resume."""
        self.passes.gather()
        measured: dict[str, float] = {}
        if self.ranks.first and self.evaluation is not None:
            self.model.eval()
            with torch.no_grad(), self.ranks.patient("evaluates"):
                measured = dict(self.evaluation(self.model))
        figures: dict[str, float] = self.ranks.share(measured)
        state, name = self.fit, self.options.keep_best_by
        if name is not None and name not in figures:
            raise BadInput(f"the best weights cannot be told: nothing is held out to find {name!r} on")
        state.last |= figures
        state.evaluated = state.steps
        if name is None or not state.best or figures[name] < state.best[name]:
            state.best, state.stale = figures | {"step": float(state.steps)}, 0
            if name is not None and self.ranks.first:
                self.bests.write(state.steps, iter(self.model.state_dict().items()), state.best)
        else:
            state.stale += 1
        self.tell(Metric(state.steps, figures))
        self.clock = time.monotonic()

    def finish(self) -> Fit:
        """Put the weights asked for, the best or the last, into the caller's model."""
        best = self.fit.best.get("step")
        if self.options.keep_best_by is not None and best is not None and best != self.fit.steps:
            with torch.no_grad():
                load(self.bests.read(round(best)), self.model.state_dict(), self.ranks)
        else:
            self.passes.gather()
        self.model.eval()
        self.optimizer.zero_grad()
        return self.fit


def fit(
    model: ModelT,
    *,
    batch: Callable[[int], BatchT],
    objective: Callable[[ModelT, BatchT], Loss],
    optimizer: Optimizers | Callable[[nn.Module], Optimizers],
    schedule: Schedule,
    options: LoopOptions,
    scratch: Path,
    emit: Emit,
    evaluate: Callable[[ModelT], Mapping[str, float]] | None = None,
    precision: Precision | None = None,
    ranks: Ranks | None = None,
) -> Fit:
    """Train `model` for `options.steps` steps, from the resume point in `scratch` if there is one.

    `batch(n)` gives batch number n and must depend on n alone. `schedule(step)` multiplies the base learning rates.
    `evaluate(model)` returns figures by name, such as {"validation/loss": 2.1}. When `emit` raises `Stop`, the resume
    point is saved and the exception passes. Ends with the best or the last weights in the model, in eval mode.

    Every one of several `ranks` calls this with the same arguments; FSDP needs the optimizer as a function of the
    model, as it trains a sharded copy. Raises `BadInput` if a resume point is damaged or of other settings, or if
    memory runs out.
    """
    ranks = ranks or Ranks()
    ranks.check(options.accumulate)
    device, precision = next(model.parameters()).device, precision or Precision()
    if device.type == "cuda" and precision.name != "fp32":
        torch.set_float32_matmul_precision("high")  # what is left in fp32, such as Muon's products
    with ExitStack() as stack:
        if device.type == "cuda":
            batch = stack.enter_context(closing(Prefetched(batch, device, ranks.world)))
        if ranks.watch is not None:
            batch = ranks.watch.loading(batch)
        arguments = (model, batch, objective, precision, options.seed)
        passes = stack.enter_context(closing(_passes(arguments, options, ranks)))
        form = {"recompute": options.recompute, "compiled": options.compiled}
        stack.enter_context(training_form(passes.trained, **form, by_block=isinstance(passes, Sharded)))
        made = optimizer if isinstance(optimizer, Optimizers) else optimizer(passes.trained)
        share_muon(made, ranks)
        if ranks.watch is not None:
            own = [passes.inner] if isinstance(passes, Replicated) else blocks(passes.trained)
            stack.callback(ranks.watch.clock(own, device))
            stack.enter_context(ranks.watched())
        run = _Run(model, passes, made, schedule, options, scratch, emit, evaluate, ranks)
        try:
            return run.train()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise BadInput(
                f"out of memory on {device.type} in step {run.fit.steps}: {options.out_of_memory}"
            ) from error


def _passes(arguments: Any, options: LoopOptions, ranks: Ranks) -> OneByOne[Any, Any]:
    if ranks.spread:
        device = next(arguments[0].parameters()).device.type
        return Sharded(*arguments, world=ranks.world, blocks=blocks, mesh=ranks.mesh(device))
    if ranks.world > 1:
        return Replicated(*arguments, world=ranks.world)
    return SideBySide(*arguments, lanes=options.lanes) if options.lanes > 1 else OneByOne(*arguments)

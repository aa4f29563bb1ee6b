"""How many tokens a second this machine trains, found by doing it for a moment.

The passes of a step cost in proportion to their tokens, the optimiser's update does not, so the two are timed apart: a
few steps of one sequence or so then tell what a step of any batch takes. What is timed is the training loop itself, on
random tokens and weights that are thrown away.
"""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from llm_core.model.config import ModelConfig
from llm_core.model.transformer import Transformer
from llm_core.scaling.devices import Device, Speed, recognised
from llm_core.scaling.recipe import batch_tokens, model_of
from llm_core.train.batches import TokenBatch, next_token_loss_on
from llm_core.train.loop import LoopOptions, fit
from llm_core.train.machine import Machine
from llm_core.train.optim import OptimizerOptions, Optimizers, make_optimizer

WIDTHS = {"cpu": (32, 64, 128, 256, 512), "cuda": (128, 256, 512, 1024, 1536)}
"""Sizes at which a machine is measured; each with the depth and heads of `scaling.recipe`."""
GUESSED_FLOPS = {"cpu": 3e10, "cuda": 5e13}
"""FLOP/s of one lane, from which the first size of a pass is guessed."""


@dataclass(frozen=True)
class StepTime:
    """Seconds for one sequence in a step, spread over all lanes, and seconds for the optimiser's update."""

    per_sequence: float
    update: float
    context: int

    def seconds(self, steps: int, sequences: int) -> float:
        """Seconds of `steps` steps with `sequences` sequences each."""
        return steps * (sequences * self.per_sequence + self.update)

    def tokens_per_second(self, sequences: int) -> float:
        """Tokens in a second at so many sequences a step."""
        return sequences * self.context / self.seconds(1, sequences)


def measure_step(
    shape: ModelConfig, machine: Machine, options: OptimizerOptions, *, rows: int = 8, seconds: float = 1.0
) -> StepTime:
    """Time steps of at most `rows` sequences a lane, and updates, for about `seconds` on this machine's CPU or GPU.

    Takes longer only if a single pass does. Leaves torch's random state on the CPU as it was.
    """
    state = torch.random.get_rng_state()
    try:
        model = Transformer(shape).to(machine.device)
        affordable = seconds / 6 * GUESSED_FLOPS[machine.device.type] / (shape.flops_per_token() * shape.context)
        rows = max(1, min(rows, int(affordable)))
        inputs_BT = torch.randint(shape.vocab_size, (rows, shape.context))
        batch, optimizer = TokenBatch(inputs_BT, inputs_BT.roll(-1, 1)), make_optimizer(model, options)
        _train(model, batch, optimizer, machine, 1)  # the first step of a shape is not a fair one
        step = _train(model, batch, optimizer, machine, 1)
        step = _train(model, batch, optimizer, machine, max(1, min(200, int(0.8 * seconds / step))))
        for parameter in optimizer.parameters:
            parameter.grad = torch.zeros_like(parameter)
        update = _median_seconds(lambda: optimizer.step(1e-6), 0.1 * seconds, machine)
        return StepTime(max(step - update, 0.1 * step) / (rows * machine.lanes), update, shape.context)
    finally:
        torch.random.set_rng_state(state)


def _train(model: Transformer, batch: TokenBatch, optimizer: Optimizers, machine: Machine, steps: int) -> float:
    """Seconds of a step of the training loop, one pass of `batch` on each lane."""
    lanes = machine.lanes
    with TemporaryDirectory() as scratch:
        done = fit(
            model,
            batch=lambda _: batch,
            objective=next_token_loss_on(machine),
            optimizer=optimizer,
            schedule=lambda _: 1e-6,
            options=LoopOptions(steps, accumulate=lanes, lanes=lanes, save_every_seconds=math.inf),
            scratch=Path(scratch),
            emit=lambda _: None,
            precision=machine.make_precision(),
        )
    return done.seconds / steps


def _median_seconds(call: Callable[[], object], seconds: float, machine: Machine) -> float:
    """Median seconds of a call that is repeated until about `seconds` have passed, at most 200 times."""
    found: list[float] = []
    while sum(found) < seconds and len(found) < 200:
        began = time.perf_counter()
        call()
        if machine.device.type == "cuda":
            torch.cuda.synchronize()
        found.append(time.perf_counter() - began)
    return statistics.median(found)


def measure_machine(
    machine: Machine,
    options: OptimizerOptions,
    *,
    seconds: float = 20.0,
    vocab_size: int | None = None,
    context: int = 128,
) -> Device:
    """This machine as a device to plan with, measured at up to five sizes in about `seconds`.

    A slow or busy machine is measured at fewer sizes, not for longer. `vocab_size` None: the one of each size. A GPU is
    measured without compiling, so training is faster there, and on at least 1,024 tokens a sequence.
    """
    speeds: list[Speed] = []
    began, gpu = time.perf_counter(), machine.device.type == "cuda"
    context = max(context, 1024) if gpu else context
    shapes = [model_of(width, vocab_size, context) for width in WIDTHS[machine.device.type]]
    for shape in shapes:
        if len(speeds) > 1:
            reached = speeds[-1].flops_per_token * speeds[-1].tokens_per_second
            one_pass = machine.lanes * context * shape.flops_per_token() / reached
            if time.perf_counter() - began + 4 * one_pass > seconds:
                break
        step = measure_step(shape, machine, options, seconds=seconds / len(shapes) / 2)
        sequences = max(machine.lanes, round(batch_tokens(20 * shape.parameters()) / context))
        speeds.append(Speed(shape.flops_per_token(), step.tokens_per_second(sequences)))
    name = f"this machine's {torch.cuda.get_device_name(machine.device)}" if gpu else "this machine"
    source = f"measured in training steps of {len(speeds)} sizes, {machine.precision}, {machine.lanes} lanes"
    best = max(speed.flops_per_token * speed.tokens_per_second for speed in speeds)
    cores = 0 if gpu else len(os.sched_getaffinity(0))
    return Device(name, best, _memory(machine), 1.0, 0.0, source, tuple(speeds), cores)


def _memory(machine: Machine) -> int:
    """Bytes that the device has."""
    if machine.device.type == "cuda":
        return int(torch.cuda.get_device_properties(machine.device).total_memory)
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def expected_seconds(
    shape: ModelConfig, machine: Machine, options: OptimizerOptions, *, steps: int, sequences: int, ranks: int = 1
) -> float:
    """Seconds that `steps` steps of `sequences` sequences over all ranks should take.

    On a CPU from timing this very model for half a second. On a GPU, where compiling and a second copy of the model
    would cost more than the figure is worth, from the table of devices; from timing if the table does not know it.
    """
    known = recognised(torch.cuda.get_device_name(machine.device)) if machine.device.type == "cuda" else None
    if known is not None:
        return steps * sequences * shape.context / known.tokens_per_second(shape) / ranks
    rows = max(1, sequences // ranks // machine.lanes)
    return measure_step(shape, machine, options, rows=rows, seconds=0.4).seconds(steps, -(-sequences // ranks))

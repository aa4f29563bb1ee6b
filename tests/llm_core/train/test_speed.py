"""Measuring the speed of training leaves no trace and gives figures that hang together. No timing is judged."""

from __future__ import annotations

import torch

from llm_core.scaling.recipe import model_of
from llm_core.train.machine import prepare
from llm_core.train.optim import OptimizerOptions
from llm_core.train.speed import StepTime, expected_seconds, measure_machine, measure_step

OPTIONS = OptimizerOptions(name="muon")


def test_a_step_is_its_sequences_and_one_update() -> None:
    step = StepTime(per_sequence=0.01, update=0.02, context=100)
    assert step.seconds(10, 4) == 10 * (0.04 + 0.02)
    assert step.tokens_per_second(4) == 400 / 0.06


def test_measuring_leaves_the_random_state_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    step = measure_step(model_of(32, 300, 32), prepare(lanes=2), OPTIONS, rows=2, seconds=0.05)
    assert torch.equal(torch.rand(3), expected)
    assert step.per_sequence > 0
    assert step.update > 0


def test_expected_seconds_grow_with_the_steps() -> None:
    machine, shape = prepare(lanes=1), model_of(32, 300, 32)
    few = expected_seconds(shape, machine, OPTIONS, steps=1, sequences=4)
    many = expected_seconds(shape, machine, OPTIONS, steps=1000, sequences=4)
    assert 0 < few < many


def test_this_machine_becomes_a_device() -> None:
    device = measure_machine(prepare(lanes=2), OPTIONS, seconds=0.5, vocab_size=512, context=32)
    assert 2 <= len(device.speeds) <= 5
    assert device.cores >= 1
    assert device.memory > 1 << 28
    assert all(speed.tokens_per_second > 0 for speed in device.speeds)
    assert device.tokens_per_second(model_of(64, 512, 32)) > 0
    assert "measured" in device.source

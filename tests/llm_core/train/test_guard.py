"""A step is judged by its gradient and by the losses before it."""

from __future__ import annotations

import torch

from llm_core.train.guard import WINDOW, Guard

CPU = torch.device("cpu")


def judge(guard: Guard, step: int, loss: float, norm: float = 1.0) -> bool:
    return bool(guard.judge(step, torch.tensor(loss), torch.tensor(norm)))


def calm(guard: Guard, steps: int) -> None:
    assert all(judge(guard, step, 3.0 + 0.1 * (step % 2)) for step in range(steps))


def test_what_is_not_finite_is_never_taken() -> None:
    for sigma in (0.0, 6.0):
        guard = Guard(CPU, sigma)
        assert judge(guard, 0, 3.0)
        assert not judge(guard, 1, 3.0, float("nan"))
        assert not judge(guard, 2, float("inf"))


def test_a_spike_is_left_out_and_does_not_move_the_measure() -> None:
    guard = Guard(CPU, 6.0)
    calm(guard, 100)
    for step in range(100, 130):
        assert not judge(guard, step, 3.5)
    assert judge(guard, 130, 3.3)
    assert judge(guard, 131, 0.1), "a fall is no spike"


def test_without_sigma_or_before_half_a_window_any_loss_is_taken() -> None:
    quiet = Guard(CPU, 0.0)
    calm(quiet, 200)
    assert judge(quiet, 200, 1e6)
    young = Guard(CPU, 6.0)
    calm(young, WINDOW // 2 - 1)
    assert judge(young, WINDOW // 2, 1e6)


def test_losses_that_hardly_differ_make_no_spike_of_a_ripple() -> None:
    guard = Guard(CPU, 6.0)
    assert all(judge(guard, step, 1e-4) for step in range(150))
    assert judge(guard, 150, 0.1)
    assert not judge(guard, 151, 0.2)

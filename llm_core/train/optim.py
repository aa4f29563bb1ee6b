"""Muon for the hidden matrices, AdamW for the rest, both written out.

Muon (Keller Jordan 2024, https://kellerjordan.github.io/posts/muon/) replaces the momentum of a matrix by the nearest
orthogonal matrix, found by a few Newton-Schulz steps. Matrices of one shape are stacked, so that a step is a handful of
batched products. AdamW is Loshchilov and Hutter 2019, on a CPU in torch's fused kernel (one walk through memory), else
in `torch._foreach` calls; both are called here, as importing torch.optim would load the compiler, which costs more
seconds than the first hundred steps of a small model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

QUINTIC = (3.4445, -4.7750, 2.0315)
"""Coefficients of the Newton-Schulz step, chosen by Jordan for the steepest rise at 0."""


@dataclass(frozen=True)
class OptimizerOptions:
    """Base learning rates (a schedule multiplies them) and decays. See `settings.pretrain.OptimizerSettings`."""

    name: Literal["muon", "adamw"] = "adamw"
    learning_rate: float = 3e-4
    embedding_learning_rate: float | None = None
    matrix_learning_rate: float = 0.02
    weight_decay: float = 0.1
    matrix_weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.95
    momentum: float = 0.95
    newton_schulz_steps: int = 5


def orthogonalise(matrices_NRC: Tensor, steps: int = 5) -> Tensor:
    """About the nearest orthogonal matrix of each [R, C] with R <= C: singular values between 0.7 and 1.2.

    With fewer than 5 steps the smallest singular values stay small, which costs a small model little.
    """
    a, b, c = QUINTIC
    x: Tensor = matrices_NRC / (matrices_NRC.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.transpose(1, 2)
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x


class Muon:
    """Nesterov momentum, orthogonalised, times the learning rate and sqrt(max(1, rows / columns))."""

    def __init__(
        self,
        parameters: Iterable[tuple[str, nn.Parameter]],
        rate: float,
        momentum: float = 0.95,
        decay: float = 0.0,
        turns: int = 5,
    ) -> None:
        """`turns`: Newton-Schulz steps."""
        self.parameters = dict(parameters)
        self.rate, self.momentum, self.decay, self.turns = rate, momentum, decay, turns
        self.state = {name: torch.zeros_like(p) for name, p in self.parameters.items()}
        self.groups: dict[tuple[int, int], list[str]] = {}
        for name, p in self.parameters.items():
            rows, columns = sorted(p.shape)
            self.groups.setdefault((rows, columns), []).append(name)

    def step(self, factor: float) -> None:
        """One update from the gradients, at `factor` times the base learning rate."""
        for job in self.jobs(factor):
            job()

    def jobs(self, factor: float) -> list[Callable[[], None]]:
        """The update as independent parts, one a shape of matrices."""
        return [partial(self._update, names, self.rate * factor) for names in self.groups.values()]

    @torch.no_grad()
    def _update(self, names: list[str], rate: float) -> None:
        parameters: list[Tensor] = [self.parameters[name] for name in names]
        grads = [p.grad for p in parameters if p.grad is not None]
        moments = [self.state[name] for name in names]
        torch._foreach_lerp_(moments, grads, 1 - self.momentum)
        ahead = torch._foreach_lerp(grads, moments, self.momentum)
        wide = [g if g.shape[0] <= g.shape[1] else g.t() for g in ahead]
        turned = orthogonalise(torch.stack(wide), self.turns)
        if self.decay:
            torch._foreach_mul_(parameters, 1 - rate * self.decay)
        for p, update in zip(parameters, turned, strict=True):
            rows, columns = p.shape
            scale = max(1.0, rows / columns) ** 0.5
            p.add_(update if rows <= columns else update.t(), alpha=-rate * scale)

    def tensors(self) -> dict[str, Tensor]:
        """State by name, for a resume point."""
        return {f"muon.{name}": value for name, value in self.state.items()}


class AdamW:
    """Adam with bias correction and decoupled weight decay."""

    def __init__(
        self, parameters: Iterable[tuple[str, nn.Parameter]], rate: float, betas: tuple[float, float], decay: float
    ):
        self.parameters = dict(parameters)
        self.rate, self.betas, self.decay, self.eps = rate, betas, decay, 1e-8
        self.mean = {name: torch.zeros_like(p) for name, p in self.parameters.items()}
        self.square = {name: torch.zeros_like(p) for name, p in self.parameters.items()}

    @torch.no_grad()
    def step(self, factor: float, count: int) -> None:
        """Update number `count` (from 1) from the gradients, at `factor` times the base learning rate."""
        rate, (beta1, beta2) = self.rate * factor, self.betas
        parameters: list[Tensor] = list(self.parameters.values())
        grads = [p.grad for p in parameters if p.grad is not None]
        mean, square = list(self.mean.values()), list(self.square.values())
        if all(type(p.data) is Tensor and p.device.type == "cpu" for p in parameters):
            torch._fused_adamw_(
                parameters, grads, mean, square, [], [torch.tensor(float(count)) for _ in parameters],
                lr=rate, beta1=beta1, beta2=beta2, weight_decay=self.decay, eps=self.eps,
                amsgrad=False, maximize=False,
            )  # fmt: skip
            return
        torch._foreach_lerp_(mean, grads, 1 - beta1)
        torch._foreach_mul_(square, beta2)
        torch._foreach_addcmul_(square, grads, grads, 1 - beta2)
        divisor = torch._foreach_sqrt(square)
        torch._foreach_div_(divisor, (1 - beta2**count) ** 0.5)
        torch._foreach_add_(divisor, self.eps)
        if self.decay:
            torch._foreach_mul_(parameters, 1 - rate * self.decay)
        torch._foreach_addcdiv_(parameters, mean, divisor, -rate / (1 - beta1**count))

    def tensors(self) -> dict[str, Tensor]:
        """State by name, for a resume point."""
        mean = {f"adamw.mean.{name}": value for name, value in self.mean.items()}
        return mean | {f"adamw.square.{name}": value for name, value in self.square.items()}


class Optimizers:
    """The optimisers of one model, stepped together; together they claim every trained parameter exactly once."""

    def __init__(self, model: nn.Module, muon: list[Muon], adamw: list[AdamW]) -> None:
        self.muon, self.adamw, self.count = muon, adamw, 0
        parts: list[Muon | AdamW] = [*muon, *adamw]
        trained = {name for name, p in model.named_parameters() if p.requires_grad}
        claimed = [name for part in parts for name in part.parameters]
        if sorted(claimed) != sorted(trained):
            odd = sorted(trained ^ set(claimed)) or sorted(name for name in claimed if claimed.count(name) > 1)
            raise ValueError(f"parameters claimed by no optimiser, or by two: {', '.join(odd)}")
        self.parameters = [p for part in parts for p in part.parameters.values()]

    def step(self, factor: float, pool: Executor | None = None) -> None:
        """One update of every parameter from its gradient; a parameter without one counts as having zeros.

        With a `pool` the independent parts of the update run side by side.
        """
        self.count += 1
        for p in self.parameters:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        jobs = [job for muon in self.muon for job in muon.jobs(factor)]
        jobs += [partial(adamw.step, factor, self.count) for adamw in self.adamw]
        if pool is None:
            for job in jobs:
                job()
        else:
            for running in [pool.submit(job) for job in jobs]:
                running.result()

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for p in self.parameters:
            p.grad = None

    def tensors(self) -> dict[str, Tensor]:
        """All state by name. The tensors are the live ones, not copies."""
        parts: list[Muon | AdamW] = [*self.muon, *self.adamw]
        found = {name: value for part in parts for name, value in part.tensors().items()}
        return found | {"count": torch.tensor(self.count)}

    @torch.no_grad()
    def load(self, saved: Mapping[str, Tensor]) -> None:
        """Take over the state that `tensors` gave. Raises `KeyError` for a missing one."""
        for name, value in self.tensors().items():
            value.copy_(saved[name])
        self.count = int(saved["count"])


def make_optimizer(model: nn.Module, options: OptimizerOptions) -> Optimizers:
    """Optimisers that claim every trained parameter of `model`.

    Weight decay of AdamW falls on matrices only. With "muon", the two-dimensional weights inside the blocks go to Muon,
    the embeddings to AdamW at `embedding_learning_rate`, everything else to AdamW at `learning_rate`. LoRA's factors,
    which start at zero and are no hidden matrices of their own, always go to AdamW.
    """
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    hidden = (
        {name for name, p in named.items() if ".layers." in name and p.dim() == 2 and ".lora_" not in name}
        if options.name == "muon"
        else set()
    )
    embeddings = {name for name in named if "embed_" in name}
    rest = {name for name in named if name not in hidden | embeddings}
    rate, betas = options.learning_rate, (options.beta1, options.beta2)
    embedding_rate = rate if options.embedding_learning_rate is None else options.embedding_learning_rate
    parts = [
        (embeddings, embedding_rate, options.weight_decay),
        ({name for name in rest if named[name].dim() >= 2}, rate, options.weight_decay),
        ({name for name in rest if named[name].dim() < 2}, rate, 0.0),
    ]
    muon = Muon(
        _pick(named, hidden),
        options.matrix_learning_rate,
        options.momentum,
        options.matrix_weight_decay,
        options.newton_schulz_steps,
    )
    adamw = [AdamW(_pick(named, names), lr, betas, decay) for names, lr, decay in parts if names]
    return Optimizers(model, [muon] if hidden else [], adamw)


def _pick(named: Mapping[str, nn.Parameter], names: set[str]) -> list[tuple[str, nn.Parameter]]:
    return [(name, p) for name, p in named.items() if name in names]

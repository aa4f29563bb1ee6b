"""How the gradients of a step come about: pass by pass, side by side in threads, or spread over processes.

A step is cut into passes, batches that are independent of each other. Whoever computes them leaves in the parameters
the sum of all their gradients, so that what a step does never depends on how it was computed:

    OneByOne     one pass after the other
    SideBySide   threads of one process, one core each: small products spread over cores badly, whole passes do not
    Replicated   torch's DDP: every rank holds the model and takes every n-th pass
    Sharded      torch's FSDP2: every rank holds a part of the weights, gradients and optimiser state; as HSDP the
                 ranks of one machine hold the parts of a whole, and each machine holds the same

Before a pass torch's random state is set from (seed, number of the pass), so dropout, too, falls alike everywhere.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from llm_core.train.machine import Precision

ModelT = TypeVar("ModelT", bound=nn.Module)
BatchT = TypeVar("BatchT")


@dataclass(frozen=True, slots=True)
class Loss:
    """What an objective returns: the sum to minimise, the count to divide it by (tokens or pairs), and figures.

    `tokens`: how many tokens went through the model, for the speed. Figures are plotted beside the loss.
    """

    total: Tensor
    count: float
    figures: Mapping[str, float] = field(default_factory=dict)
    tokens: int = 0

    def detached(self) -> Loss:
        """The same without the graph behind it."""
        return Loss(self.total.detach(), self.count, self.figures, self.tokens)


class OneByOne(Generic[ModelT, BatchT]):
    """Passes one after the other. The other ways of computing gradients derive from it."""

    mean_over = 1
    """What the gradients left behind have been divided by."""
    pool: ThreadPoolExecutor | None = None
    """Threads that other independent work may use, too."""

    def __init__(
        self,
        model: ModelT,
        batch: Callable[[int], BatchT],
        objective: Callable[[ModelT, BatchT], Loss],
        precision: Precision,
        seed: int,
    ) -> None:
        self.model, self.batch, self.objective = model, batch, objective
        self.precision, self.seed, self.last = precision, seed, -1

    @property
    def trained(self) -> nn.Module:
        """The module whose parameters are trained: the caller's model, or a sharded copy of it."""
        return self.model

    def __call__(self, numbers: Sequence[int], parameters: Sequence[nn.Parameter]) -> list[Loss]:
        """Compute the passes of these numbers. The gradients, times the loss scale, are then in `parameters`."""
        for parameter in parameters:
            parameter.grad = None
        self.last = numbers[-1]
        return [self._pass(number) for number in numbers]

    def _pass(self, number: int) -> Loss:
        self._seed(number)
        loss = self.objective(self.model, self.batch(number))
        self.precision.scaled(loss.total).backward()  # type: ignore[no-untyped-call]
        return loss.detached()

    def _seed(self, number: int) -> None:
        torch.manual_seed((self.seed << 32) + number)

    def gather(self) -> None:
        """Bring the caller's model up to date with what was trained. Every rank has to call it."""

    def close(self) -> None:
        """Leave the caller's model as it came, but for its weights."""


class SideBySide(OneByOne[ModelT, BatchT]):
    """Passes in threads, for a model without dropout: torch's random state is shared by all threads."""

    def __init__(self, *arguments: Any, lanes: int) -> None:
        super().__init__(*arguments)
        self.pool = self.threads = ThreadPoolExecutor(lanes)

    def __call__(self, numbers: Sequence[int], parameters: Sequence[nn.Parameter]) -> list[Loss]:
        self._seed(numbers[0])
        results = list(self.threads.map(partial(self._gradients, parameters), numbers))
        summed = results[0][1]
        for _, gradients in results[1:]:  # in order: the same bytes as one by one
            summed = list(torch._foreach_add(summed, gradients))
        for parameter, gradient in zip(parameters, summed, strict=True):
            parameter.grad = gradient
        return [loss for loss, _ in results]

    def _gradients(self, parameters: Sequence[nn.Parameter], number: int) -> tuple[Loss, list[Tensor]]:
        loss = self.objective(self.model, self.batch(number))
        gradients = torch.autograd.grad(self.precision.scaled(loss.total), parameters, materialize_grads=True)
        return loss.detached(), list(gradients)

    def close(self) -> None:
        self.threads.shutdown()


class _Objective(nn.Module):
    """An objective as a module: DDP and FSDP2 act before and after the forward of one."""

    def __init__(self, model: nn.Module, objective: Callable[[Any, Any], Loss]) -> None:
        super().__init__()
        self.model, self.objective = model, objective
        self.loss: Loss | None = None

    def forward(self, batch: object) -> Tensor:
        loss = self.objective(self.model, batch)
        self.loss = loss.detached()
        return loss.total

    def taken(self) -> Loss:
        """The loss of the last pass."""
        if self.loss is None:
            raise RuntimeError("no pass was computed yet")
        return self.loss


class Replicated(OneByOne[ModelT, BatchT]):
    """Every rank holds the model; DDP sums the gradients while the last pass still goes backward."""

    def __init__(self, *arguments: Any, world: int) -> None:
        from torch.nn.parallel import DistributedDataParallel

        super().__init__(*arguments)
        self.inner = _Objective(self.model, self.objective)
        named = inspect.signature(DistributedDataParallel.__init__).parameters  # torch 2.13 renamed the first of these
        unsynced = "forward_sync_buffers" if "forward_sync_buffers" in named else "broadcast_buffers"
        options: dict[str, Any] = {unsynced: False, "gradient_as_bucket_view": True}
        self.outer = DistributedDataParallel(self.inner, **options)
        self.mean_over = world

    def _pass(self, number: int) -> Loss:
        self._seed(number)
        with nullcontext() if number == self.last else self.outer.no_sync():
            self.precision.scaled(self.outer(self.batch(number))).backward()  # type: ignore[no-untyped-call]
        return self.inner.taken()


class Sharded(OneByOne[ModelT, BatchT]):
    """FSDP2 on a copy of the model, one shard group a block. The caller's model is the whole copy to evaluate.

    In bf16 the weights travel in bf16 and the gradients in fp32. `mesh`: of two dimensions, over the first of which
    weights are copied and over the second spread; None: spread over all ranks.
    """

    def __init__(
        self, *arguments: Any, world: int, blocks: Callable[[nn.Module], Sequence[nn.Module]], mesh: Any = None
    ) -> None:
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        super().__init__(*arguments)
        self.inner = _Objective(copy.deepcopy(self.model), self.objective)
        half = self.precision.name == "bf16"
        policy = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16 if half else None,
            reduce_dtype=torch.float32 if half else None,
            cast_forward_inputs=False,
        )
        for block in blocks(self.inner.model):
            fully_shard(block, mp_policy=policy, mesh=mesh)
        fully_shard(self.inner, mp_policy=policy, mesh=mesh)
        self.mean_over = world

    @property
    def trained(self) -> nn.Module:
        return self.inner.model

    def _pass(self, number: int) -> Loss:
        self._seed(number)
        self.precision.scaled(self.inner(self.batch(number))).backward()  # type: ignore[no-untyped-call]
        return self.inner.taken()

    @torch.no_grad()
    def gather(self) -> None:
        whole = self.model.state_dict()
        for name, value in self.trained.state_dict().items():
            whole[name].copy_(value.full_tensor() if hasattr(value, "full_tensor") else value)

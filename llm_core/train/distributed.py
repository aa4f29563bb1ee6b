"""Several processes that train one model: what they tell each other, and Muon's share of the work.

Ranks are started by torchrun (`launch.py`), or by anything that sets its environment variables. Tensors on a GPU travel
by NCCL, those on a CPU by gloo. What the processes decide together (stop, save, the figures of an evaluation) goes by
gloo, so a GPU never waits for it. Whether one of them stands still or is slow is watched beside that (`watch.py`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from torch import Tensor

from llm_core.contract import BadInput
from llm_core.train.optim import Muon, Optimizers, orthogonalise
from llm_core.train.watch import Watch

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

Parallel = Literal["ddp", "fsdp", "hsdp"]
PATIENCE = timedelta(hours=6)
"""How long ranks wait for each other: the first one may evaluate or save a large model meanwhile."""


def _never() -> bool:
    return False


def _silence(_: str) -> None:
    """Nobody to be told."""


@dataclass(frozen=True)
class Listener:
    """What the process that runs a rank has for it: whether it got SIGTERM, and who hears why it must end.

    `hang_seconds`: how long a rank may stand still, 0: for ever.
    """

    asked_to_stop: Callable[[], bool] = _never
    hang_seconds: float = 0.0
    fail: Callable[[str], None] = _silence


_listener = Listener()


def listen(listener: Listener) -> None:
    """Let the ranks of this process, which `join` after this, turn to this listener."""
    global _listener
    _listener = listener


@dataclass(frozen=True)
class Ranks:
    """The processes that train together, seen from one of them. The default is one process alone."""

    rank: int = 0
    world: int = 1
    parallel: Parallel = "ddp"
    asked_to_stop: Callable[[], bool] = _never
    """Whether this process got SIGTERM. In a lone process `emit` raises `Stop` instead."""
    local: int = 0
    """Ranks on one machine, all machines having as many; 0: all are on this one."""
    watch: Watch | None = None
    """Who finds ranks that stand still or are slow."""

    @property
    def first(self) -> bool:
        """Whether this is the rank that speaks, evaluates and writes."""
        return self.rank == 0

    @property
    def spread(self) -> bool:
        """Whether weights and optimizer state are spread over the ranks."""
        return self.world > 1 and self.parallel != "ddp"

    def mesh(self, device: str) -> DeviceMesh | None:
        """How weights are spread: over all ranks (None), or for hsdp over those of a machine, each machine alike."""
        if self.parallel != "hsdp":
            return None
        from torch.distributed.device_mesh import init_device_mesh

        inside = self.local or self.world
        return init_device_mesh(device, (self.world // inside, inside), mesh_dim_names=("replicate", "shard"))

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Inside, a rank that stands still ends the run."""
        if self.watch is not None:
            self.watch.start()
        try:
            yield
        finally:
            if self.watch is not None:
                self.watch.close()

    def patient(self, what: str) -> AbstractContextManager[None]:
        """Inside, the others wait as long as it takes; `what` says for what."""
        return nullcontext() if self.watch is None else self.watch.patient(what)

    def mine(self, numbers: range) -> range:
        """The passes of a step that are this rank's: every world-th. Together the ranks do what one would do."""
        return numbers[self.rank :: self.world]

    def sum_(self, values: Tensor) -> Tensor:
        """Sum over all ranks, in place."""
        if self.world > 1:
            torch.distributed.all_reduce(values)
        return values

    def any(self, *flags: bool) -> list[bool]:
        """For each flag whether any rank holds it true."""
        if self.world == 1:
            return list(flags)
        raised = torch.tensor(flags, dtype=torch.int32)
        torch.distributed.all_reduce(raised, torch.distributed.ReduceOp.MAX)
        return [bool(flag) for flag in raised.tolist()]

    def share(self, value: Any) -> Any:
        """The first rank's value (of JSON's types) on every rank; the others wait for it."""
        if self.world == 1:
            return value
        data = json.dumps(value).encode() if self.first else b""
        size = torch.tensor([len(data)])
        torch.distributed.broadcast(size, 0)
        content = torch.frombuffer(bytearray(data.ljust(int(size))), dtype=torch.uint8)
        torch.distributed.broadcast(content, 0)
        return json.loads(bytes(content.tolist()))

    def collect(self, value: Any) -> list[Any]:
        """Each rank's value (of JSON's types), by rank, on every rank."""
        if self.world == 1:
            return [value]
        data = json.dumps(value).encode()
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world)]
        torch.distributed.all_gather(sizes, torch.tensor([len(data)]))
        longest = max(int(size) for size in sizes)
        mine = torch.frombuffer(bytearray(data.ljust(longest)), dtype=torch.uint8)
        contents = [torch.empty_like(mine) for _ in range(self.world)]
        torch.distributed.all_gather(contents, mine)
        return [json.loads(bytes(content.tolist())) for content in contents]

    def check(self, passes: int) -> None:
        """Refuse a number of passes that the ranks cannot share evenly."""
        if passes % self.world:
            raise BadInput(
                f"passes: {passes} passes cannot be shared by {self.world} ranks; make passes a multiple of ranks"
            )


def under_torchrun() -> bool:
    """Whether this process is one of several ranks, or about to join them."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


class RanksSettings(Protocol):
    """What the settings of a stage say of its ranks."""

    @property
    def ranks(self) -> int: ...
    @property
    def nodes(self) -> int: ...
    @property
    def passes(self) -> int: ...
    @property
    def restarts(self) -> int: ...
    @property
    def hang_seconds(self) -> float: ...


@dataclass(frozen=True)
class Start:
    """Ranks to be started: so many on each of so many machines (nodes).

    They begin again up to `restarts` times after one was lost; `hang_seconds` is how long one may stand still.
    """

    ranks: int
    nodes: int = 1
    restarts: int = 0
    hang_seconds: float = 0.0

    @property
    def world(self) -> int:
        """All ranks."""
        return self.ranks * self.nodes


def ranks_to_start(settings: RanksSettings) -> Start | None:
    """The ranks that this process has to start: as many as the settings ask for (0: one for each GPU), or none.

    Raises `BadInput` if they cannot share the passes of a step.
    """
    wanted = settings.ranks or max(1, torch.cuda.device_count())
    start = Start(wanted, settings.nodes, settings.restarts, settings.hang_seconds)
    if start.world <= 1 or under_torchrun():
        return None
    Ranks(world=start.world).check(settings.passes)
    return start


def join(parallel: Parallel = "ddp") -> Ranks:
    """Join the ranks that torchrun's environment variables describe; alone if there are none. May be called again."""
    if not under_torchrun():
        return Ranks(parallel=parallel)
    group = torch.distributed
    if not group.is_initialized():
        backend = "gloo"
        if torch.cuda.is_available():
            backend = "cpu:gloo,cuda:nccl"
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        group.init_process_group(backend, timeout=PATIENCE)
    rank, world, local = group.get_rank(), group.get_world_size(), int(os.environ.get("LOCAL_WORLD_SIZE", "0"))
    seconds = _listener.hang_seconds
    watch = Watch(rank, world, seconds, _listener.fail) if seconds else None
    return Ranks(rank, world, parallel, _listener.asked_to_stop, local, watch)


def leave() -> None:
    """Part from the other ranks."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def cores_of_a_rank(threads: int) -> int:
    """CPU threads for this rank: its part of `threads`, or of all cores of the machine where that is 0."""
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, (threads or len(os.sched_getaffinity(0))) // local) if local > 1 else threads


def whole(value: Tensor) -> Tensor:
    """The whole of a tensor that may be spread over the ranks. Every rank has to call it."""
    full: Tensor = value.full_tensor() if hasattr(value, "full_tensor") else value
    return full


def part_of(value: Tensor, like: Tensor) -> Tensor:
    """The whole tensor `value`, which every rank holds, spread as `like` is. Nothing travels."""
    value = value.to(like.device)
    if not hasattr(like, "placements"):
        return value
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(like, DTensor)
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)


def share_muon(optimizer: Optimizers, ranks: Ranks) -> None:
    """Let the ranks share Muon's work: each turns its part of the matrices of a shape, then all get all."""
    if ranks.world > 1:
        optimizer.muon = [SharedMuon.of(muon, ranks) for muon in optimizer.muon]


class SharedMuon(Muon):
    """Muon over matrices that every rank holds (DDP), or of which each holds some rows (FSDP2).

    Momentum and the update itself stay where the parameter's rows are. An orthogonal matrix needs the whole of the
    momentum: rows are gathered, each rank turns 1/world of the stack, and the turned matrices are gathered again.
    """

    ranks: Ranks

    @classmethod
    def of(cls, muon: Muon, ranks: Ranks) -> SharedMuon:
        """The same optimiser, state included, with its work shared."""
        shared = cls.__new__(cls)
        shared.__dict__ = muon.__dict__ | {"ranks": ranks}
        return shared

    @torch.no_grad()
    def _update(self, names: list[str], rate: float) -> None:
        parameters = [self.parameters[name] for name in names]
        held = [local(p) for p in parameters]
        grads = [local(p.grad) for p in parameters if p.grad is not None]
        moments = [local(self.state[name]) for name in names]
        torch._foreach_lerp_(moments, grads, 1 - self.momentum)
        ahead = torch._foreach_lerp(grads, moments, self.momentum)
        full = [whole(_as(value, p)) for value, p in zip(ahead, parameters, strict=True)]
        turned = self._turn_together(torch.stack([m if m.shape[0] <= m.shape[1] else m.t() for m in full]))
        if self.decay:
            torch._foreach_mul_(held, 1 - rate * self.decay)
        for mine, p, update in zip(held, parameters, turned, strict=True):
            rows, columns = p.shape
            scale = max(1.0, rows / columns) ** 0.5
            update = update if rows <= columns else update.t()
            mine.add_(local(part_of(update.contiguous(), p)), alpha=-rate * scale)

    def _turn_together(self, wide_NRC: Tensor) -> Tensor:
        count, world = len(wide_NRC), self.ranks.world
        share = -(-count // world)
        mine = wide_NRC[self.ranks.rank * share : (self.ranks.rank + 1) * share]
        turned = torch.zeros((share, *wide_NRC.shape[1:]), dtype=wide_NRC.dtype, device=wide_NRC.device)
        if len(mine):
            turned[: len(mine)] = orthogonalise(mine, self.turns)
        gathered = [torch.empty_like(turned) for _ in range(world)]
        torch.distributed.all_gather(gathered, turned)
        return torch.cat(gathered)[:count]


def local(value: Tensor) -> Tensor:
    """This rank's part of a tensor; all of it if it is not spread. In-place changes reach the tensor."""
    part: Tensor = value.to_local() if hasattr(value, "to_local") else value
    return part


def _as(part: Tensor, like: Tensor) -> Tensor:
    """A local part as a tensor spread like `like`."""
    if not hasattr(like, "placements"):
        return part
    from torch.distributed.tensor import DTensor

    assert isinstance(like, DTensor)
    return DTensor.from_local(  # type: ignore[no-untyped-call,no-any-return]
        part, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )

"""How long and how carefully to train: the options of the loop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from llm_core.train.machine import Machine

LOOK_EVERY = 10
"""Steps between looks at a GPU's figures."""
OF_THE_MACHINE = (
    "ranks", "nodes", "restarts", "hang_seconds", "parallel", "threads", "device", "activation_checkpointing",
    "compile", "save_every_seconds", "keep_last", "sample_tokens", "sample_prompts", "sample_count", "law",
)  # fmt: skip
"""Settings that may differ when a run is resumed: they say where and how it runs, not what comes out."""


class TrainingSettings(Protocol):
    """What the settings of every stage that trains in passes have in common."""

    @property
    def steps(self) -> int: ...
    @property
    def seed(self) -> int: ...
    @property
    def clip(self) -> float: ...
    @property
    def passes(self) -> int: ...
    @property
    def evaluate_every(self) -> int: ...
    @property
    def save_every_seconds(self) -> float: ...
    @property
    def spike_sigma(self) -> float: ...
    @property
    def keep_last(self) -> int: ...
    @property
    def activation_checkpointing(self) -> bool: ...
    @property
    def compile(self) -> str: ...
    def model_dump(self) -> dict[str, Any]: ...


@dataclass(frozen=True, slots=True)
class LoopOptions:
    """How long and how carefully to train."""

    steps: int
    seed: int = 0
    clip: float = 1.0
    """Largest global gradient norm."""
    accumulate: int = 1
    """Passes, the batches of one step."""
    lanes: int = 1
    """Passes that run side by side in threads, for a model without dropout (torch's random state is shared)."""
    evaluate_every: int = 0
    """Steps between evaluations; 0: only after the last step."""
    save_every_seconds: float = 30.0
    keep_last: int = 2
    """Resume points that stay."""
    keep_best_by: str | None = None
    """Name of the evaluated figure whose lowest value marks the weights to end with. None: the last weights."""
    patience: int | None = None
    """Evaluations without a better `keep_best_by` before training ends."""
    metric_every: int = 0
    """Steps between points of the curves; 0: about 500 points in all."""
    prefix: str = "train"
    """Section of the curves' names."""
    spike_sigma: float = 0.0
    """Standard deviations above the mean of the last losses from which a step is left out; 0: never."""
    look_every: int = 1
    """Steps between looks at a device's figures. Above 1 the host never waits: a bad step's gradient then counts as
    zero, where otherwise the whole step is left out."""
    recompute: bool = False
    """Compute activations again in the backward pass instead of keeping them."""
    compiled: bool = False
    """Compile the blocks."""
    flops_per_token: int = 0
    """Of training, forward and backward, for the share of the device's peak that is used; 0: no such figure."""
    out_of_memory: str = "make the batches smaller"
    """What to do about too little memory, in the words of the stage's settings."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings (flat, of JSON's types) that have to be the same when the run is resumed."""

    @classmethod
    def of(cls, settings: TrainingSettings, machine: Machine, **more: Any) -> LoopOptions:
        """The options that a stage's settings name on this machine, with `more` beside them."""
        on_gpu = machine.device.type == "cuda"
        named: dict[str, Any] = {
            "steps": settings.steps,
            "seed": settings.seed,
            "clip": settings.clip,
            "accumulate": settings.passes,
            "evaluate_every": settings.evaluate_every,
            "save_every_seconds": settings.save_every_seconds,
            "spike_sigma": settings.spike_sigma,
            "keep_last": settings.keep_last,
            "recompute": settings.activation_checkpointing,
            "compiled": settings.compile == "on" or (settings.compile == "auto" and on_gpu),
            "lanes": machine.lanes,
            "look_every": LOOK_EVERY if on_gpu and machine.precision != "fp16" else 1,
            "settings": flat({k: v for k, v in settings.model_dump().items() if k not in OF_THE_MACHINE}),
            "out_of_memory": f"raise passes (now {settings.passes}), which cuts a step into smaller batches, "
            "or set activation_checkpointing",
        }
        return cls(**named | more)

    def identity(self) -> dict[str, Any]:
        """What a resume point must agree with."""
        own = {"steps": self.steps, "seed": self.seed, "clip": self.clip, "passes": self.accumulate}
        return own | dict(self.settings)


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings under dotted names."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return found

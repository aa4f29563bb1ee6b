"""How long and how carefully to train: the options of the loop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol


class TrainingSettings(Protocol):
    """What the settings of every stage that trains in passes have in common."""

    steps: int
    seed: int
    clip: float
    passes: int
    evaluate_every: int
    save_every_seconds: float


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
    def of(cls, settings: TrainingSettings, **more: Any) -> LoopOptions:
        """The options that a stage's settings name, with `more` beside them."""
        return cls(
            steps=settings.steps,
            seed=settings.seed,
            clip=settings.clip,
            accumulate=settings.passes,
            evaluate_every=settings.evaluate_every,
            save_every_seconds=settings.save_every_seconds,
            **more,
        )

    def identity(self) -> dict[str, Any]:
        """What a resume point must agree with."""
        own = {"steps": self.steps, "seed": self.seed, "clip": self.clip, "passes": self.accumulate}
        return own | dict(self.settings)

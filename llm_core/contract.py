"""What a stage is: a function of its settings and its input directories that fills one output directory.

    run(config, *, <products it needs>: Path, <files it reads>: Path, out: Path, scratch: Path, emit: Emit) -> Report

A stage tells what it is doing by calling `emit` with events; it never learns who listens. A listener may raise `Stop`
from inside `emit`: the stage then saves what it needs to resume into `scratch` and lets the exception pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

try:
    from pydantic import BaseModel, ConfigDict
except ModuleNotFoundError:  # with torch and numpy alone models train; only settings need pydantic
    BaseModel, ConfigDict = object, dict  # type: ignore[assignment,misc]


class Config(BaseModel):
    """Base of every section of params.yaml: immutable, and an unknown key is an error, never ignored."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, protected_namespaces=())

    how: ClassVar[frozenset[str]] = frozenset({"threads", "device"})
    """Settings that say how a stage computes and not what: interrupted work goes on under other values of them."""


class BadInput(ValueError):
    """What the user gave cannot be used. The message is one sentence that names the file or field; exit code 2."""


class Stop(Exception):
    """Raised by `emit` when the run was asked to end: save the resume point, then let it pass."""


@dataclass(frozen=True, slots=True)
class Metric:
    """Figures at one step of a curve, for example {"train/loss": 2.31}."""

    step: int
    values: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the stage is: `done` of `total` (None: unknown) `unit`, with the figures that matter right now."""

    done: float
    total: float | None
    unit: str
    figures: Mapping[str, float | str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Note:
    """A sentence for the log."""

    text: str


@dataclass(frozen=True, slots=True)
class Resumed:
    """The work continues from this step of a curve: figures told before for later steps are void."""

    step: int


Event = Metric | Progress | Note | Resumed
Emit = Callable[[Event], None]
Row = Mapping[str, str | float | int | bool | None]


@dataclass(frozen=True, slots=True)
class Report:
    """What a stage found: final figures by name, tables for people, and text samples of a model."""

    metrics: Mapping[str, float]
    tables: Mapping[str, Sequence[Row]] = field(default_factory=dict)
    samples: Sequence[Mapping[str, str]] = field(default_factory=tuple)

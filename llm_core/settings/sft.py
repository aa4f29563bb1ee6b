"""Settings of the stage sft."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from llm_core.contract import Config
from llm_core.model.config import LORA_TARGETS
from llm_core.settings.pretrain import LoopSettings, OptimizerSettings, ScheduleSettings


class LoraSettings(Config):
    """Low-rank additions to frozen weights, trained instead of them."""

    rank: int = Field(default=8, ge=1, le=4096)
    """Rank of each addition, 1 to 4096."""
    alpha: float = Field(default=16.0, gt=0, le=65536)
    """An addition is scaled by alpha / rank; above 0 up to 65536."""
    targets: tuple[str, ...] = Field(default=LORA_TARGETS, min_length=1)
    """Last names of the layers that get one, of q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj and down_proj."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of an addition's inputs zeroed in training, 0 up to 1. Above 0 passes do not run side by side."""

    @field_validator("targets")
    @classmethod
    def _known(cls, targets: tuple[str, ...]) -> tuple[str, ...]:
        for name in targets:
            if name not in LORA_TARGETS:
                raise ValueError(f"{name!r} is none of {', '.join(LORA_TARGETS)}")
        return targets


class SftConfig(LoopSettings):
    """Settings of sft: tune the base model on dialogues; the loss counts answers only."""

    seed: int = Field(default=1, ge=0, lt=2**31)
    """Seed of the order of the dialogues and of dropout."""
    threads: int = Field(default=0, ge=0, le=1024)
    """CPU threads of torch; 0: one for each core."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; `auto` takes a GPU if there is one."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Number format of the matrix products; `auto`: bf16 on a GPU (fp16 on one without bf16), fp32 on a CPU. fp16
    scales the loss, and leaves a step out whose gradients overflow."""
    steps: int = Field(default=400, ge=1, le=10_000_000)
    """Optimizer steps."""
    batch_dialogues: int = Field(default=64, ge=1, le=65536)
    """Dialogues in one step."""
    passes: int = Field(default=4, ge=1, le=4096)
    """Forward passes that a step is cut into, at most `batch_dialogues`; each takes dialogues of like length, to save
    padding. On a CPU, without dropout, they run side by side on the cores."""
    problem_share: float | None = Field(default=0.85, ge=0, le=1)
    """Share of problems among the dialogues of a step, 0 to 1. Empty: as they stand in the data."""
    packing: bool = False
    """Lay dialogues end to end in rows of the model's context instead of padding each. None sees another, and the loss
    is the same; worth it where dialogues are far shorter than the context or of very different lengths."""
    page_share: float = Field(default=0.0, ge=0, le=0.9)
    """Share of a step's `batch_dialogues` sequences that are windows of training pages, each of the model's context,
    0 to 0.9. They keep the model from forgetting what pretraining taught it."""
    lora: LoraSettings | None = None
    """Train low-rank additions and keep the base weights frozen: a fraction of the memory. The product is the merged
    model with the additions beside it in `adapter/`. Empty: train all weights."""
    optimizer: OptimizerSettings = OptimizerSettings(
        learning_rate=0.003,
        embedding_learning_rate=0.03,
        matrix_learning_rate=0.02,
        weight_decay=0.0,
        matrix_weight_decay=0.0,
    )
    """What turns gradients into steps. Given in part, the rest takes the defaults of pretrain."""
    schedule: ScheduleSettings = ScheduleSettings()
    """How the learning rate moves."""
    clip: float = Field(default=1.0, gt=0)
    """Largest global norm of the gradients; above it they are scaled down."""
    evaluate_every: int = Field(default=100, ge=1)
    """Steps between evaluations on held-out dialogues."""
    patience: int | None = Field(default=None, ge=1)
    """Evaluations without a better held-out loss before training ends early and the best weights are kept.
    Empty: train all steps and keep the last weights."""
    save_every_seconds: float = Field(default=30.0, gt=0)
    """Seconds between resume points."""
    sample_tokens: int = Field(default=60, ge=1, le=4096)
    """Longest generated answer in tokens."""
    sample_count: int = Field(default=4, ge=0, le=100)
    """Held-out questions of each kind that the finished model answers, for people to read."""

    @model_validator(mode="after")
    def _cuts(self) -> SftConfig:
        if self.passes > self.batch_dialogues:
            raise ValueError(f"passes: {self.passes} passes need at least as many batch_dialogues")
        return self

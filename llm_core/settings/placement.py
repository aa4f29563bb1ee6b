"""Section `placement` of params.yaml: on which machines each stage runs. It makes nothing stale."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from llm_core.contract import Config


class PlaceSettings(Config):
    """Where one stage runs: in a work pool of Prefect, or as a job of Slurm."""

    pool: str | None = Field(default=None, min_length=1)
    """Name of a work pool (process, Kubernetes ...) whose workers see the project and its workspace at this path."""
    job: dict[str, Any] = Field(default_factory=dict)
    """Job variables that the pool's template knows, for example {gpus: 8, memory: 64Gi} in one of Kubernetes."""
    slurm: tuple[str, ...] | None = None
    """Options of sbatch, for example [--nodes=2, --gres=gpu:8, --time=08:00:00]; [] takes those of the script."""
    script: str = "deployments/slurm/stage.sbatch"
    """The job's script, relative to the project; it is given the stage's name."""

    @model_validator(mode="after")
    def _one_of_two(self) -> PlaceSettings:
        if (self.pool is None) == (self.slurm is None):
            raise ValueError("name either a pool or slurm")
        if self.job and self.pool is None:
            raise ValueError("job is for a pool; Slurm takes its options under slurm")
        return self


class PlacementSettings(Config):
    """The place of each stage; one that is not named here runs where the build itself runs."""

    acquire: PlaceSettings | None = None
    """Where acquire runs."""
    clean: PlaceSettings | None = None
    """Where clean runs."""
    tokenize: PlaceSettings | None = None
    """Where tokenize runs."""
    pretrain: PlaceSettings | None = None
    """Where pretrain runs."""
    sft: PlaceSettings | None = None
    """Where sft runs."""
    collect: PlaceSettings | None = None
    """Where collect runs."""
    reward: PlaceSettings | None = None
    """Where reward runs."""
    align: PlaceSettings | None = None
    """Where align runs."""
    evaluate: PlaceSettings | None = None
    """Where evaluate runs."""
    wait_seconds: float = Field(default=120.0, gt=0, le=86400)
    """Seconds that a pool may be without a worker before the build says so and ends, above 0 to 86400."""

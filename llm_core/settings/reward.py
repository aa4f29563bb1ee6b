"""Settings of the stage reward: how the votes become a score."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from llm_core.contract import Config


class RewardConfig(Config):
    """A reward model: the chat model with a head on the last token, trained on pairs (Bradley-Terry)."""

    pool: Literal["votes", "dataset", "both"] = "votes"
    """Pairs it learns from: the votes (people's, else the simulated rater's), the corpus's preference data, or both."""
    steps: int = Field(default=150, ge=1)
    """Optimizer steps at most; the best step on held-out pairs is kept."""
    batch_pairs: int = Field(default=16, ge=1)
    """Pairs per step."""
    learning_rate: float = Field(default=1e-3, gt=0.0, le=1.0)
    """Peak learning rate (AdamW)."""
    weight_decay: float = Field(default=0.1, ge=0.0, le=1.0)
    """Weight decay of the matrices."""
    warmup_share: float = Field(default=0.1, ge=0.0, lt=1.0)
    """Share of the steps in which the learning rate rises; it then falls to a tenth by a cosine."""
    centre: float = Field(default=0.01, ge=0.0, le=1.0)
    """Weight of the mean squared sum of a pair's two scores, which keeps scores near zero."""
    evaluate_every: int = Field(default=25, ge=1)
    """Steps between looks at the held-out pairs."""
    patience: int = Field(default=3, ge=1)
    """Looks without a better held-out loss after which training ends."""
    threads: int = Field(default=0, ge=0, le=1024)
    """CPU threads of torch; 0: one for each core."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; `auto` takes a GPU if there is one."""
    seed: int = Field(default=0, ge=0)
    """Seed of the head's start and of the order of pairs."""

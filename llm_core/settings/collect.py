"""Settings of the stage collect: which answers are compared, and who compares them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from llm_core.contract import Config


class CollectConfig(Config):
    """Pairs of answers with a preference, from people's votes or, until there are enough, the simulated rater."""

    min_votes: int = Field(default=200, ge=1)
    """Clear votes of people from which on they are used alone; with fewer of them the simulated rater votes. Votes that
    are left out (too fast, contradicted, one side only) do not count."""
    min_seconds: float = Field(default=1.0, ge=0.0, le=3600.0)
    """Seconds from both answers to the vote below which a person's vote is left out; 0 keeps all."""
    one_sided_votes: int = Field(default=20, ge=2)
    """Clear votes of one rater from which on, if all went to the same side, the rater's votes are left out."""
    prompts: int = Field(default=3000, ge=1)
    """Prompts answered for the simulated rater, at most: the corpus's checked dialogues of split "feedback"."""
    samples: int = Field(default=8, ge=2, le=64)
    """Answers sampled per prompt."""
    pairs: int = Field(default=6, ge=1, le=64)
    """Pairs of different answers to a prompt that are voted on, at most."""
    temperature: float = Field(default=1.0, gt=0.0, le=5.0)
    """Sampling temperature of the answers."""
    max_new_tokens: int = Field(default=24, ge=1, le=4096)
    """Length limit of an answer, in tokens."""
    rater_noise: float = Field(default=0.05, ge=0.0, le=0.5)
    """Share of the simulated rater's clear votes that are flipped."""
    validation_share: float = Field(default=0.1, gt=0.0, lt=0.5)
    """Share of the prompts held out to judge reward model and alignment; a prompt's pairs are never divided."""
    threads: int = Field(default=0, ge=0, le=1024)
    """CPU threads of torch; 0: one for each core."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; `auto` takes a GPU if there is one."""
    seed: int = Field(default=0, ge=0)
    """Seed of the samples and of the simulated rater."""

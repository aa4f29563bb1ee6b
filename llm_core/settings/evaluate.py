"""Settings of the stage evaluate: what the models are asked, and how sure the answers are."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from llm_core.contract import Config


class EvaluateConfig(Config):
    """Bits per byte, multiple choice, cloze and checked problems for base, chat and aligned."""

    problems: int = Field(default=800, ge=1)
    """Held-out problems answered by chat and aligned, greedily and by sampling, at most."""
    answers: int = Field(default=4, ge=1, le=64)
    """Sampled answers to each problem; their mean is the problem's judged score."""
    base_problems: int = Field(default=200, ge=0)
    """Of these, the first so many are answered greedily by base too, for comparison."""
    choices: int = Field(default=300, ge=0)
    """Multiple-choice questions on held-out docstrings, at most."""
    cloze: int = Field(default=200, ge=0)
    """Sentences of held-out pages whose last word is to be found, at most."""
    validation_tokens: int = Field(default=100_000, ge=1)
    """Tokens of held-out pages on which bits per byte are measured, at most; spread evenly over the sources."""
    temperature: float = Field(default=1.0, gt=0.0, le=5.0)
    """Temperature of sampled answers."""
    max_new_tokens: int = Field(default=24, ge=1, le=4096)
    """Length limit of an answer, in tokens."""
    bootstrap: int = Field(default=2000, ge=100)
    """Resamples behind each 95% interval."""
    samples: int = Field(default=6, ge=0)
    """Text samples per model shown in the report; the same prompts for every model."""
    sample_tokens: int = Field(default=80, ge=1)
    """Length of a text sample that continues a page, in tokens."""
    threads: int = Field(default=0, ge=0, le=1024)
    """CPU threads of torch; 0: one for each core."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; `auto` takes a GPU if there is one."""
    seed: int = Field(default=0, ge=0)
    """Seed of sampling, of the questions' distractors and of the bootstrap."""

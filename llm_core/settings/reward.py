"""Settings of the stage reward: how the votes become a score."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from llm_core.contract import Config


class HeadSettings(Config):
    """One head of the reward model: which pairs teach it, and how much its score counts."""

    sources: tuple[str, ...] = ()
    """Names of acquire's preference sources whose pairs it learns from, or `simulated` or `people`. Empty: all pairs
    of the pool."""
    weight: float = Field(default=1.0, ge=-100.0, le=100.0)
    """Weight of its score, of mean 0 and deviation 1, in the mixed reward, -100 to 100. The mix is brought to
    deviation 1 again, so only the proportions count."""


class RewardConfig(Config):
    """A reward model: the chat model with a head on the last token, trained on pairs (Bradley-Terry)."""

    pool: Literal["votes", "dataset", "both"] = "votes"
    """Pairs it learns from: the votes (people's, else the simulated rater's), the corpus's preference data, or both."""
    heads: dict[str, HeadSettings] = Field(default={"votes": HeadSettings()}, min_length=1)
    """Heads by name, such as helpful and harmless, on one backbone."""
    likelihood: bool = True
    """Whether a head also reads how likely the backbone finds the answer, times a learned factor. It is what tells a
    small model's right answers from its wrong ones; where the preferred answers are no likelier, it is of no use."""
    steps: int = Field(default=150, ge=1)
    """Optimizer steps at most; the best step on held-out pairs is kept."""
    batch_pairs: int = Field(default=16, ge=1)
    """Pairs per step."""
    learning_rate: float = Field(default=3e-4, gt=0.0, le=1.0)
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
    normalise_on: int = Field(default=512, ge=2, le=100_000)
    """Prompts of the training pairs that the chat model answers, so that its answers score mean 0 and deviation 1."""
    temperature: float = Field(default=1.0, gt=0.0, le=5.0)
    """Sampling temperature of these answers."""
    max_new_tokens: int = Field(default=24, ge=1, le=4096)
    """Length limit of such an answer, in tokens."""
    threads: int = Field(default=0, ge=0, le=1024)
    """CPU threads of torch; 0: one for each core."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; `auto` takes a GPU if there is one."""
    seed: int = Field(default=0, ge=0)
    """Seed of the head's start and of the order of pairs."""

    @field_validator("heads")
    @classmethod
    def _some_weight(cls, heads: dict[str, HeadSettings]) -> dict[str, HeadSettings]:
        if all(head.weight == 0 for head in heads.values()):
            raise ValueError("at least one head needs a weight other than 0")
        return heads

"""What sampled answers are worth: a learned score, a checked answer, or a weighted mix of both."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from llm_core.contract import BadInput
from llm_core.feedback.checks import Check
from llm_core.feedback.rollout import Messages
from llm_core.feedback.scorer import RewardModel

Source = Literal["model", "checked", "mix"]


class UselessReward(Exception):
    """The reward says nothing: it is not a number, or the same for every answer. The message counts the answers."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is asked: its tokens up to where the answer begins, its messages, and what checks an answer, if anything."""

    tokens: list[int]
    messages: Messages
    check: str | None


@dataclass(frozen=True, slots=True)
class Sample:
    """An answer that was drawn. `tokens` ends with the closing token if it `finished` by itself."""

    prompt: Prompt
    tokens: list[int]
    logprobs: list[float]
    text: str
    finished: bool


@dataclass(frozen=True)
class Worth:
    """The worth of samples, and its parts by name, each in the order of the samples."""

    total: list[float]
    parts: dict[str, list[float]]


@dataclass(frozen=True)
class Rewards:
    """Says what samples are worth.

    `mix` is (1 - checked_weight) x score + checked_weight x (1 or 0). `missing_end_penalty` is subtracted from the
    total of an answer that was cut.
    """

    source: Source
    scorer: RewardModel | None
    check: Check
    checked_weight: float = 0.5
    missing_end_penalty: float = 0.0

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the parts."""
        return {"model": ("model",), "checked": ("checked",), "mix": ("model", "checked")}[self.source]

    def __call__(self, samples: Sequence[Sample]) -> Worth:
        """Raises `BadInput` for a sample without a check where answers are to be checked."""
        parts: dict[str, list[float]] = {}
        if self.source != "checked":
            if self.scorer is None:
                raise BadInput("align.online.reward: a learned score needs a reward model")
            context = self.scorer.backbone.config.context
            parts["model"] = self.scorer.score([(s.prompt.tokens + s.tokens)[:context] for s in samples])
        if self.source != "model":
            parts["checked"] = [self._checked(sample) for sample in samples]
        weights = {"model": 1.0, "checked": 1.0}
        if self.source == "mix":
            weights = {"model": 1 - self.checked_weight, "checked": self.checked_weight}
        total = [
            sum(weights[name] * values[i] for name, values in parts.items())
            - (0.0 if sample.finished else self.missing_end_penalty)
            for i, sample in enumerate(samples)
        ]
        return Worth(total, parts)

    def _checked(self, sample: Sample) -> float:
        if sample.prompt.check is None:
            raise BadInput(
                f"align.online.reward: nothing checks the answers to {sample.prompt.messages[-1]['content']!r}"
            )
        return float(self.check(sample.text, sample.prompt.check))


def refuse_useless(totals: Sequence[float]) -> None:
    """Raises `UselessReward` if some worth is not a finite number, or all are the same."""
    if broken := sum(not math.isfinite(value) for value in totals):
        raise UselessReward(f"the reward is not a number for {broken} of {len(totals)} answers")
    if max(totals) - min(totals) < 1e-9:
        raise UselessReward(f"the reward is {totals[0]:.3g} for all of {len(totals)} answers")

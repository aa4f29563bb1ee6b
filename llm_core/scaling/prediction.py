"""What a training run is expected to reach, said before it begins and compared when it has ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llm_core.model.config import ModelConfig
from llm_core.scaling.laws import Law


@dataclass(frozen=True)
class Prediction:
    """Nats per token by the law called `law`, and seconds; `remark` says what the loss is worth."""

    loss: float
    seconds: float
    law: str
    remark: str

    def sentence(self) -> str:
        """The prediction in words."""
        told = f"a held-out loss of {self.loss:.2f} nats per token by {self.law} ({self.remark})"
        return f"expected: {self.seconds:,.0f} s of training, {told}"

    def metrics(self) -> dict[str, float]:
        """Figures for a stage's report."""
        return {"predicted_loss": self.loss, "predicted_seconds": self.seconds}

    def table(self, loss: float | None, seconds: float) -> list[dict[str, str | float | None]]:
        """Predicted beside actual, a row each for loss and time; `loss` None: none was measured."""
        rows = (
            ("held-out loss, nats per token", self.loss, loss, f"{self.law}: {self.remark}"),
            ("seconds of training", self.seconds, seconds, "the machine's speed, before the first step"),
        )
        return [
            {"what": what, "predicted": predicted, "actual": actual, "source": source}
            for what, predicted, actual, source in rows
        ]


def distinct_tokens(facts: Mapping[str, Any], total: int) -> int:
    """Training tokens that differ, by the facts of a shards product whose training stream has `total` tokens.

    A source with a weight above 1 stands in the stream more than once.
    """
    mixture = facts["splits"]["train"].get("mixture")
    return sum(min(part["tokens"], part["stream_tokens"]) for part in mixture.values()) if mixture else total


def predict(shape: ModelConfig, tokens: int, unique: int, law: Law, seconds: float) -> Prediction:
    """The prediction for a run of `tokens` tokens, of which `unique` are different, that should take `seconds`.

    A published law speaks of another corpus and tokenizer; a loss above that of guessing, ln V, is cut there.
    """
    raw = law.loss(shape.parameters(), tokens, unique)
    loss = law.expected(shape.parameters(), tokens, unique, shape.vocab_size)
    remark = "fitted on runs on this corpus"
    if not law.name.startswith("own"):
        remark = "fitted on another corpus and tokenizer and on far larger models"
    if raw > loss:
        remark += f"; it says {raw:.1f} here, so the loss of guessing is told"
    return Prediction(loss, seconds, law.name, remark)

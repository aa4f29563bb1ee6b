"""Scaling laws: the loss that a model size and a number of tokens lead to, and the best split of a compute budget.

Losses are in nats per token, so a law holds for the tokenizer and the text that it was fitted on, and for no other: the
published ones say how loss moves with size and data, not what it will be on another corpus. Sources:

    Hoffmann et al. 2022    Training Compute-Optimal Large Language Models (Chinchilla), arXiv:2203.15556, approach 3
    Besiroglu et al. 2024   Chinchilla Scaling: A Replication Attempt (Epoch AI), arXiv:2404.10102: the same form and
                            data fitted again; agrees with Chinchilla's approaches 1 and 2, which its approach 3 as
                            printed does not
    Kaplan et al. 2020      Scaling Laws for Neural Language Models, arXiv:2001.08361, equation 1.5 and section 6
    Muennighoff et al. 2023 Scaling Data-Constrained Language Models, arXiv:2305.16264: what repeated tokens are worth
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from llm_core.artifacts import dump_json, write_atomic
from llm_core.contract import BadInput

REPEATS_HALF_WORTH = 15.387756
"""R*_D of Muennighoff et al.: after so many repeats a repeated token has lost 1 - 1/e of its worth."""
EXCESS_HALF_WORTH = 5.309743
"""R*_N of the same: how fast parameters lose worth beyond what the unique tokens can feed."""
PF_DAY = 8.64e19
"""FLOPs in a petaflop/s-day, Kaplan's unit of compute."""


@dataclass(frozen=True)
class Law:
    """L(N, D) = E + A / N^alpha + B / D^beta: N parameters (all of them), D training tokens, nats per token.

    E is the loss that no model gets below; A and alpha the price of a small model, B and beta that of little data.
    Raises `BadInput` for a law that does not fall with size and data.
    """

    E: float
    A: float
    B: float
    alpha: float
    beta: float
    name: str = "unnamed"
    source: str = ""
    smallest: float = 0.0
    """Parameters of the smallest model that the law was fitted on; below, it is extrapolated."""

    def __post_init__(self) -> None:
        for key in ("A", "B", "alpha", "beta"):
            if not (math.isfinite(getattr(self, key)) and getattr(self, key) > 0):
                raise BadInput(f"law {self.name!r}: {key} = {getattr(self, key)} must be a number above 0")
        if not (math.isfinite(self.E) and self.E >= 0):
            raise BadInput(f"law {self.name!r}: E = {self.E} must be a number of at least 0")

    def loss(self, parameters: float, tokens: float, unique: float | None = None) -> float:
        """Nats per token; with `unique` below `tokens`, repeated tokens and the parameters beyond them count less."""
        if unique is not None and unique < tokens:
            parameters = self.effective_parameters(parameters, unique)
            tokens = effective_tokens(tokens, unique)
        return float(self.E + self.A / parameters**self.alpha + self.B / tokens**self.beta)

    def expected(self, parameters: float, tokens: float, unique: float | None, vocab_size: int) -> float:
        """`loss`, but never above ln V, which guessing reaches: far below its smallest model a law would say so."""
        return min(self.loss(parameters, tokens, unique), math.log(vocab_size))

    @property
    def balance(self) -> float:
        """G of Hoffmann et al.: N = G (C / 6)^a and D = (C / 6)^b / G are the best use of C FLOPs."""
        return float((self.alpha * self.A / (self.beta * self.B)) ** (1 / (self.alpha + self.beta)))

    @property
    def exponents(self) -> tuple[float, float]:
        """(a, b): the best size grows as C^a, the best number of tokens as C^b; a + b = 1."""
        return self.beta / (self.alpha + self.beta), self.alpha / (self.alpha + self.beta)

    def optimum(self, flops: float) -> tuple[float, float]:
        """(parameters, tokens) of the lowest loss for `flops` = 6 N D."""
        a, b = self.exponents
        return float(self.balance * (flops / 6) ** a), float((flops / 6) ** b / self.balance)

    def best_size(self, tokens: float) -> float:
        """Parameters of the model for which `tokens` are compute-optimal."""
        a, b = self.exponents
        return float(self.balance * (tokens * self.balance) ** (a / b))

    def effective_parameters(self, parameters: float, unique: float) -> float:
        """N' of Muennighoff et al.: parameters beyond those that `unique` tokens can feed are worth less and less."""
        enough = min(self.best_size(unique), parameters)
        excess = parameters / enough - 1
        return enough + enough * EXCESS_HALF_WORTH * (1 - math.exp(-excess / EXCESS_HALF_WORTH))

    def to_dict(self) -> dict[str, Any]:
        """All fields."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Law:
        """The law of such a dict; other keys are passed over. Raises `BadInput`."""
        known = {field.name for field in fields(cls)}
        missing = {"E", "A", "B", "alpha", "beta"} - set(values)
        if missing:
            raise BadInput(f"law: {min(missing)} is missing")
        return cls(**{key: value for key, value in values.items() if key in known})


def effective_tokens(tokens: float, unique: float) -> float:
    """D' of Muennighoff et al.: what `tokens` over a corpus of `unique` tokens are worth in fresh ones."""
    if tokens <= unique:
        return tokens
    repeats = tokens / unique - 1
    return unique + unique * REPEATS_HALF_WORTH * (1 - math.exp(-repeats / REPEATS_HALF_WORTH))


@dataclass(frozen=True)
class Kaplan:
    """L(N, D) = ((Nc / N)^(alpha_N / alpha_D) + Dc / D)^alpha_D; N without embeddings. Kept for comparison.

    Its best size grows as C^0.73, which later work traced to fixed schedules and to leaving out the embeddings.
    """

    alpha_n: float = 0.076
    alpha_d: float = 0.103
    critical_parameters: float = 6.4e13
    critical_tokens: float = 1.8e13
    name: str = "Kaplan et al. 2020"
    source: str = "arXiv:2001.08361, equation 1.5, table 2; section 6.1"

    def loss(self, parameters: float, tokens: float) -> float:
        """Nats per token for `parameters` without embeddings."""
        size = (self.critical_parameters / parameters) ** (self.alpha_n / self.alpha_d)
        return float((size + self.critical_tokens / tokens) ** self.alpha_d)

    def optimum(self, flops: float) -> tuple[float, float]:
        """(parameters without embeddings, tokens): 1.3e9 C^0.73 parameters, C in PF-days; tokens from C = 6 N D."""
        parameters = 1.3e9 * (flops / PF_DAY) ** 0.73
        return parameters, flops / (6 * parameters)


HOFFMANN = Law(
    E=1.6934, A=406.4, B=410.7, alpha=0.3392, beta=0.2849,
    name="Hoffmann et al. 2022", source="arXiv:2203.15556, approach 3 (unrounded as in its TeX source)", smallest=44e6,
)  # fmt: skip
EPOCH = Law(
    E=1.8172, A=482.01, B=2085.43, alpha=0.3478, beta=0.3658,
    name="Chinchilla, Epoch AI's refit", source="Besiroglu et al. 2024, arXiv:2404.10102", smallest=44e6,
)  # fmt: skip
KAPLAN = Kaplan()
PUBLISHED: tuple[Law, ...] = (EPOCH, HOFFMANN)
"""Laws of Chinchilla's form, the one that plans go by first."""


def write_law(path: Path, law: Law, facts: Mapping[str, Any]) -> None:
    """Keep a fitted law with the facts about its fit (the shards' digest, the runs, intervals)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, dump_json({"law": law.to_dict(), "facts": dict(facts)}))


def read_law(path: Path) -> tuple[Law, dict[str, Any]]:
    """A law that `write_law` kept, and its facts. Raises `BadInput` for anything else."""
    try:
        content = json.loads(path.read_text())
        return Law.from_dict(content["law"]), dict(content["facts"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, BadInput):
            raise BadInput(f"{path}: {error}") from None
        raise BadInput(f"{path}: not a law that groundup wrote ({type(error).__name__})") from None

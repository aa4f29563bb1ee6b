"""A ladder of small runs that shows how loss falls with size and data on one corpus, and what it teaches.

The runs are isoFLOP: several sizes at each of several budgets, all within one pass over the corpus, so that no token is
seen twice. One run at four times the largest budget is held out: the law must foretell its loss before it is trusted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from llm_core.contract import BadInput
from llm_core.model.config import ModelConfig
from llm_core.scaling import recipe
from llm_core.scaling.devices import Device
from llm_core.scaling.fitting import Fit, Point, Valley, fit_law, growth, valleys
from llm_core.scaling.laws import Law

BUDGETS = 4
SIZES = 4
HELD_OUT_FACTOR = 4.0
TOKENS_A_PARAMETER = 10.0
"""Where the sizes of a ladder lie: between Chinchilla's 20 and the 2 to 5 that models below a million like best."""
APART = 1.25
"""Factor in FLOPs a token between neighbouring sizes, at the least."""
FEWEST_STEPS = 40
MOST_OF_CORPUS = 0.97
"""Share of the corpus that a run sees at most; the rest is lost where windows are cut."""


@dataclass(frozen=True)
class Rung:
    """One run: a model, its steps, and the sequences of each. `budget` numbers the isoFLOP curve; -1: held out."""

    shape: ModelConfig
    steps: int
    sequences: int
    budget: int

    @property
    def tokens(self) -> int:
        """Training tokens."""
        return self.steps * self.sequences * self.shape.context

    @property
    def flops(self) -> float:
        """FLOPs of training, attention and output head included."""
        return float(self.tokens) * self.shape.flops_per_token()

    @property
    def name(self) -> str:
        """A name that says size and budget."""
        return f"w{self.shape.width}-{self.flops:.1e}".replace("+", "")

    def settings(self, passes: int) -> dict[str, Any]:
        """Sections of params.yaml that make this run; all else stays as in the workspace."""
        model = {name: getattr(self.shape, name) for name in ("layers", "heads", "width", "context")}
        return {
            "pretrain": {
                "model": {"preset": self.shape.architecture, **model},
                "steps": self.steps,
                "batch_sequences": self.sequences,
                "passes": min(passes, self.sequences),
                "dialogue_share": 0.0,
                "evaluate_every": self.steps,
                "sample_tokens": 1,
            }
        }


@dataclass(frozen=True)
class Ladder:
    """Runs to fit on, from the smallest budget up, and the one that is held out. `flops`: the largest budget."""

    rungs: tuple[Rung, ...]
    held_out: Rung
    flops: float

    def seconds(self, device: Device) -> float:
        """Seconds of training on a device, the held-out run included."""
        return sum(rung.tokens / device.tokens_per_second(rung.shape) for rung in (*self.rungs, self.held_out))


@dataclass(frozen=True)
class Study:
    """What a ladder taught. `fit` is from the rungs alone, `law` from all runs; `losses` by the rungs' names.

    `predicted`: what `fit` says of the held-out run, whose actual loss stands in `losses`.
    """

    ladder: Ladder
    losses: Mapping[str, float]
    fit: Fit
    law: Law
    valleys: tuple[Valley, ...]
    predicted: float

    @property
    def actual(self) -> float:
        """Loss of the held-out run."""
        return self.losses[self.ladder.held_out.name]

    @property
    def error(self) -> float:
        """How far the prediction is off, as a share of the actual loss; below 0: too low."""
        return self.predicted / self.actual - 1

    def rows(self) -> list[dict[str, Any]]:
        """A row a run: size, tokens, compute, loss, and what the law fitted on the rungs says."""
        return [
            {
                "run": rung.name,
                "what": "held out" if rung.budget < 0 else f"budget {rung.budget + 1}",
                "parameters": rung.shape.parameters(),
                "tokens": rung.tokens,
                "flops": rung.flops,
                "loss": self.losses[rung.name],
                "law": self.fit.law.loss(rung.shape.parameters(), rung.tokens),
            }
            for rung in (*self.ladder.rungs, self.ladder.held_out)
        ]

    def facts(self) -> dict[str, Any]:
        """All figures, for a file."""
        both = growth(self.valleys)
        return {
            "runs": self.rows(),
            "intervals": {name: asdict(interval) for name, interval in self.fit.intervals.items()},
            "residual": self.fit.residual,
            "valleys": [asdict(valley) for valley in self.valleys],
            "exponents_by_parabolas": None if both is None else {"a": both[0], "b": both[1]},
            "held_out": {"predicted": self.predicted, "actual": self.actual, "error": self.error},
        }


def design(
    tokens: int,
    vocab_size: int,
    context: int,
    *,
    flops: float | None = None,
    budgets: int = BUDGETS,
    sizes: int = SIZES,
    architecture: str = "qwen3",
    lanes: int = 2,
) -> Ladder:
    """A ladder whose largest budget is `flops` (None: as much as one pass over `tokens` allows), each half of the next.

    Sizes lie around ten tokens a parameter, or above where the corpus is too small for so many tokens.
    Raises `BadInput` if the corpus is too small for three sizes at three budgets.
    """
    most = MOST_OF_CORPUS * tokens
    shapes = list(recipe.family(vocab_size, context, architecture))
    if flops is None:
        flops = _largest(shapes, most)
    middle = max(math.sqrt(flops / 6 / TOKENS_A_PARAMETER), flops / (6 * 0.66 * most))  # as FLOPs a token / 6
    sequences = max(lanes, lanes * round(recipe.batch_tokens(most / 3) / context / lanes))
    rungs: list[Rung] = []
    for index in range(budgets):
        share = 2.0 ** (index - budgets + 1)
        found = list(_sized(shapes, flops * share, middle * math.sqrt(share), most, sequences, index))
        rungs += sorted(found[:sizes], key=lambda rung: rung.shape.width)
    if len({rung.budget for rung in rungs}) < 3 or len({rung.shape.width for rung in rungs}) < 3 or len(rungs) < 8:
        raise BadInput(
            f"scaling: {tokens:,} training tokens are too few for a ladder of runs within one pass over them"
        )
    wanted = middle * math.sqrt(HELD_OUT_FACTOR)
    held_out = next(_sized(shapes, flops * HELD_OUT_FACTOR, wanted, most, sequences, -1), None)
    if held_out is None:
        raise BadInput(f"scaling: no model of the family passes once over {most:,.0f} tokens at {4 * flops:.2g} FLOPs")
    return Ladder(tuple(rungs), held_out, flops)


def _largest(shapes: Sequence[ModelConfig], most: float) -> float:
    """The budget at which a model of 0.4 FLOPs a token / 6 for each token reads two thirds of the corpus."""
    shape = min(shapes, key=lambda shape: abs(math.log(shape.flops_per_token() / (6 * 0.27 * most))))
    return 0.66 * most * shape.flops_per_token()


def _sized(
    shapes: Sequence[ModelConfig], flops: float, middle: float, most: float, sequences: int, budget: int
) -> Iterator[Rung]:
    """Runs of `flops`, the sizes next to `middle` first, that see at most `most` tokens in 40 steps or more."""
    taken: list[int] = []
    for shape in sorted(shapes, key=lambda shape: abs(math.log(shape.flops_per_token() / (6 * middle)))):
        cost = shape.flops_per_token()
        rung = Rung(shape, round(flops / (cost * sequences * shape.context)), sequences, budget)
        apart = all(max(cost / other, other / cost) >= APART for other in taken)
        if apart and rung.steps >= FEWEST_STEPS and rung.tokens <= most:
            taken.append(cost)
            yield rung


def within(
    tokens: int, vocab_size: int, context: int, device: Device, seconds: float, *, lanes: int = 2, **options: Any
) -> Ladder:
    """The largest ladder on the corpus that trains in about `seconds` on `device`, by halving its budgets.

    `options` as for `design`. Raises `BadInput` if even the smallest takes longer.
    """
    ladder = design(tokens, vocab_size, context, lanes=lanes, **options)
    while ladder.seconds(device) > seconds:
        try:
            ladder = design(tokens, vocab_size, context, flops=0.7 * ladder.flops, lanes=lanes, **options)
        except BadInput:
            raise BadInput(
                f"scaling: {seconds / 60:.1f} minutes on {device.name} are too few: the smallest ladder takes "
                f"{ladder.seconds(device) / 60:.1f}"
            ) from None
    return ladder


def learn(
    ladder: Ladder, losses: Mapping[str, float], *, name: str = "own ladder", source: str = "", bootstrap: int = 200
) -> Study:
    """Fit the law on the rungs, foretell the held-out run, then fit again on all of them.

    `losses`: held-out loss in nats per token of each run by its name; `bootstrap`: resamples for the intervals. Raises
    `BadInput` if one is missing.
    """
    missing = [rung.name for rung in (*ladder.rungs, ladder.held_out) if rung.name not in losses]
    if missing:
        raise BadInput(f"scaling: the loss of run {missing[0]} is missing")
    points = [point_of(rung, losses[rung.name]) for rung in ladder.rungs]
    held_out = point_of(ladder.held_out, losses[ladder.held_out.name])
    fit = fit_law(points, name=name, source=source, bootstrap=bootstrap)
    law = fit_law([*points, held_out], name=name, source=source, bootstrap=0).law
    predicted = fit.law.loss(held_out.parameters, held_out.tokens)
    return Study(ladder, dict(losses), fit, law, tuple(valleys(points)), predicted)


def point_of(rung: Rung, loss: float) -> Point:
    """A run with its loss, as the fit takes it."""
    return Point(rung.shape.parameters(), rung.tokens, rung.flops, loss)

"""How often the gate errs: equal models promoted, better ones refused, by simulation.

    python -m benchmarks.gate [--trials 400] [--worlds same,strengths,...] [--sizes 100,200,400,800]

The gate is the real one (`llm_core.release.gate.decide`); the two models are simulated. A simulation is worth what its
assumptions are, so there are several worlds, each with all of its assumptions in `WORLDS`:

- An answer is right or wrong; a prompt's rate is the chance that a model's sampled answer to it is right.
- Both models answer the same prompts. In `same` they have the same rates, so all correlation over prompts comes from
  the prompts being hard or easy. In `strengths` each model has strengths of its own: logit rates differ by normal
  noise of deviation 1 a prompt, so that "equal" is true of the average over all prompts only. In `close` the
  sampler's random numbers are shared, as they are here (they depend on prompt, sample and position only): a prompt's
  answers are right together, and strengths differ by half as much. In `single` one answer is drawn, not four. In
  `longer` right answers are longer, which length control partly takes for length. In `split` most prompts are always
  or never solved, as with a small model.
- Answers to one prompt are independent given its rate (but for `close`); prompts are independent of each other.
- Greedy answers are right where the rate is above one half, give or take (deviation 0.1).
- The better model's rates are higher by five points on average: by five points each where there is room.

Asked for: at most 5% of 400 trials with equal models at 800 prompts end in promotion, at least 80% with the better one.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.measuring import RESULTS, save, where
from llm_core.release.gate import decide
from llm_core.release.options import GateOptions
from llm_core.release.scores import Scores

Floats = NDArray[np.float64]
GAIN = 0.05


@dataclass(frozen=True)
class World:
    """Assumptions of a simulation."""

    answers: int = 4
    shape: tuple[float, float] = (1.0, 1.0)
    """Of the Beta distribution that rates are drawn from; they are then squeezed into [0.03, 0.9]."""
    own: float = 0.0
    """Deviation of the difference of the two models' logit rates on a prompt."""
    shared: bool = False
    """Whether both models draw by the same random numbers."""
    longer: float = 0.0
    """Characters that a right answer is longer than a wrong one (both have a deviation of 2)."""


WORLDS = {
    "same": World(),
    "strengths": World(own=1.0),
    "close": World(shared=True, own=0.5),
    "single": World(answers=1),
    "longer": World(longer=2.0),
    "split": World(shape=(0.3, 0.3)),
}


def models(world: World, prompts: int, gain: float, rng: np.random.Generator) -> tuple[Scores, Scores]:
    """(candidate, champion) on `prompts` prompts; the candidate's rates are higher by `gain` on average."""
    common = 0.03 + 0.87 * rng.beta(*world.shape, prompts)
    logits = np.log(common / (1 - common))
    ours, rates = (_rate(logits + rng.normal(0, world.own / 2**0.5, prompts)) for _ in range(2))
    ours = _raised(ours, gain)
    draws = rng.random((2, prompts, world.answers))
    if world.shared:
        draws[1] = draws[0]
    return _model("aligned", ours, draws[0], world, rng), _model("chat", rates, draws[1], world, rng)


def _rate(logits: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-logits)))


def _raised(rates: Floats, gain: float) -> Floats:
    """Higher by `gain` on average, by the same step wherever 1 leaves room."""
    step = gain
    for _ in range(20):
        raised = np.clip(rates + step, 0, 1)
        step += gain - float((raised - rates).mean())
    return raised


def _model(name: str, rates: Floats, draws: Floats, world: World, rng: np.random.Generator) -> Scores:
    right = draws < rates[:, None]
    lengths = 6 + rng.normal(0, 2, right.shape) + world.longer * right
    greedy = rates + rng.normal(0, 0.1, len(rates)) > 0.5
    ids = [f"p{i:05d}" for i in range(len(rates))]

    def by_prompt(values: Floats) -> dict[str, float]:
        return dict(zip(ids, values.tolist(), strict=True))

    return Scores(
        model=name,
        evaluation_set="simulated",
        pages="simulated",
        sampled=by_prompt(right.mean(axis=1)),
        greedy=by_prompt(greedy.astype(float)),
        bits_per_byte=1.7,
        mean_length=6.0,
        ended=1.0,
        kl_from_chat=1.0,
        lengths=by_prompt(lengths.mean(axis=1)),
    )


def promoted(world: World, prompts: int, gain: float, trials: int, options: GateOptions) -> dict[str, Any]:
    """Share of the trials that end in promotion, and what the verdicts said they could have found."""
    count, found = 0, []
    for trial in range(trials):
        candidate, champion = models(world, prompts, gain, np.random.default_rng((prompts, round(1000 * gain), trial)))
        verdict = decide(candidate, champion, options)
        count += verdict.promoted
        found.append(0.0 if verdict.detectable is None else verdict.detectable)
    error = (count / trials * (1 - count / trials) / trials) ** 0.5
    return {"promoted": count, "trials": trials, "share": count / trials, "standard_error": round(error, 4),
            "detectable": round(statistics.median(found), 4)}  # fmt: skip


def main() -> None:
    """Simulate each world at each size: equal models, the better one, and one better by what the verdict prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=400)
    parser.add_argument("--resamples", type=int, default=400, help="bootstrap resamples of the gate")
    parser.add_argument("--worlds", default=",".join(WORLDS))
    parser.add_argument("--sizes", default="800,100,200,400", help="numbers of prompts")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    options = GateOptions.model_validate({"resamples": arguments.resamples})
    for name in arguments.worlds.split(","):
        world, rows = WORLDS[name], []
        for prompts in map(int, arguments.sizes.split(",")):
            equal = promoted(world, prompts, 0.0, arguments.trials, options)
            better = promoted(world, prompts, GAIN, arguments.trials, options)
            printed = promoted(world, prompts, equal["detectable"], arguments.trials // 2, options)
            rows.append({"prompts": prompts, "equal": equal, "better_by_5_points": better,
                         "better_by_what_is_printed": printed})  # fmt: skip
            print(f"{name} {prompts}: equal {equal['share']:.3f}, +5 points {better['share']:.3f}, "
                  f"+{100 * equal['detectable']:.1f} points (printed) {printed['share']:.3f}", flush=True)  # fmt: skip
        part = {"where": where(), "assumptions": asdict(world), "resamples": arguments.resamples, "rows": rows}
        save("gate", {name: part}, arguments.results)


if __name__ == "__main__":
    main()

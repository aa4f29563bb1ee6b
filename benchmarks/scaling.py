"""Scaling laws: does the fit recover a planted law, and does a ladder foretell a run at four times its compute?

    python -m benchmarks.scaling [--only PARTS] [--shards data/shards] [--chinchilla CSV] [--results FOLDER]

planted   losses from known laws with noise of 0.1% and 0.3%; how far the fitted exponents are off
refit     the fit on Chinchilla's own runs, as Epoch AI read them off its figure 4 (data/svg_extracted_data.csv of
          github.com/epoch-research/analyzing-chinchilla), beside the constants of Besiroglu et al. 2024; needs the file
machine   the planner's 20-second measurement; then plain runs of three sizes: predicted beside actual time
ladder    16 small runs of pretrain on the shards, within one pass; the law that they fit; predicted beside actual loss
          of one more at four times the largest budget. A few minutes on two cores.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as in the stages

import numpy as np

from benchmarks.measuring import RESULTS, ROOT, save, seconds_of, where
from llm_core.contract import Event
from llm_core.data.shards import Shards
from llm_core.scaling import ladder as ladders
from llm_core.scaling.fitting import Point, fit_law, growth, valleys
from llm_core.scaling.laws import EPOCH, HOFFMANN, PUBLISHED, Law
from llm_core.settings.pretrain import PretrainConfig

PARTS = ("planted", "refit", "machine", "ladder")
PLANTED = (EPOCH, HOFFMANN, Law(E=1.2, A=30, B=200, alpha=0.25, beta=0.4, name="another"))
CONTEXT, LANES = 128, 2


def planted_runs(law: Law, noise: float, seed: int, budgets: int = 7, sizes: int = 7) -> list[Point]:
    """IsoFLOP runs of a known law from 1e15 to 1e21 FLOPs, with relative noise on the losses."""
    random = np.random.default_rng(seed)
    runs = []
    for flops in np.geomspace(1e15, 1e21, budgets):
        size, tokens = law.optimum(flops)
        for factor in np.geomspace(1 / 8, 8, sizes):
            loss = law.loss(size * factor, tokens / factor) * float(np.exp(noise * random.standard_normal()))
            runs.append(Point(size * factor, tokens / factor, flops, loss))
    return runs


def measure_planted(seeds: int = 10) -> dict[str, Any]:
    """Largest relative errors of the fitted exponents over some seeds, by law and noise."""
    rows = []
    for law in PLANTED:
        for noise in (0.0, 0.001, 0.003):
            laws, a_by_parabola = [], []
            for seed in range(seeds):
                runs = planted_runs(law, noise, seed)
                laws.append(fit_law(runs, bootstrap=0).law)
                grown = growth(valleys(runs))
                a_by_parabola.append(grown[0] if grown else float("nan"))
            rows.append({
                "law": law.name, "noise": noise, "runs": len(runs), "seeds": seeds,
                **{f"worst_error_{key}": max(abs(getattr(found, key) / getattr(law, key) - 1) for found in laws)
                   for key in ("alpha", "beta", "E")},
                "worst_error_a": max(abs(found.exponents[0] / law.exponents[0] - 1) for found in laws),
                "worst_error_a_by_parabolas": max(abs(a / law.exponents[0] - 1) for a in a_by_parabola),
            })  # fmt: skip
    return {"where": where(), "rows": rows}


def measure_refit(path: Path) -> dict[str, Any]:
    """The law of Chinchilla's runs less the five with the highest loss, as Epoch AI left them out."""
    with path.open() as file:
        rows = [row for row in csv.DictReader(file) if row["loss"]]
    runs = []
    for row in rows:
        size, flops = float(row["Model Size"]), float(row["Training FLOP"])
        runs.append(Point(size, flops / (6 * size), flops, float(row["loss"])))
    fit = fit_law(sorted(runs, key=lambda run: run.loss)[:-5])
    return {"where": where(), "runs": len(runs) - 5, "law": fit.law.to_dict(), "epoch_ai": EPOCH.to_dict(),
            "intervals": {name: asdict(interval) for name, interval in fit.intervals.items()}}  # fmt: skip


def pretrain_once(rung: ladders.Rung, shards: Path, seed: int = 1) -> dict[str, float]:
    """Run pretrain on one rung in this process; its final figures."""
    from llm_core.train import pretrain

    config = PretrainConfig.model_validate(rung.settings(LANES)["pretrain"] | {"seed": seed})
    events: list[Event] = []
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder) / "scratch"
        scratch.mkdir()
        report = pretrain.run(config, shards=shards, out=Path(folder) / "base", scratch=scratch, emit=events.append)
    return dict(report.metrics)


def measure_ladder(shards: Path) -> dict[str, Any]:
    """All runs of a ladder, the fit, and the run that it had to foretell."""
    about, data = where(), Shards.open(shards)
    tokens = len(data.tokens("train"))
    ladder = ladders.design(tokens, data.vocab_size, CONTEXT, lanes=LANES)
    found: dict[str, dict[str, float]] = {}
    began = time.perf_counter()
    for rung in (*ladder.rungs, ladder.held_out):
        figures = pretrain_once(rung, shards)
        found[rung.name] = figures
        kept = {key: figures[key] for key in ("loss", "train_seconds", "predicted_seconds")}
        print(rung.name, json.dumps(kept), flush=True)
    study = ladders.learn(ladder, {name: figures["loss"] for name, figures in found.items()})
    facts = study.facts()
    for row in facts["runs"]:
        figures = found[row["run"]]
        row |= {"seconds": figures["train_seconds"], "predicted_seconds": figures["predicted_seconds"]}
    held_out = ladder.held_out
    return {
        "where": about,
        "load_average_after": [round(load, 2) for load in os.getloadavg()],
        "corpus": {"train_tokens": tokens, "vocab_size": data.vocab_size, "context": CONTEXT},
        "wall_s": round(time.perf_counter() - began, 1),
        "law": study.fit.law.to_dict(),
        "held_out_compute_over_largest": held_out.flops / max(rung.flops for rung in ladder.rungs),
        "published_laws_say": {law.name: law.loss(held_out.shape.parameters(), held_out.tokens) for law in PUBLISHED},
        **facts,
    }


def measure_machine(shards: Path, steps: int = 60) -> dict[str, Any]:
    """The planner's measurement of this machine, then the time that it foretells beside the time that runs take."""
    from llm_core.scaling.recipe import model_of
    from tasks.planning import this_machine

    about, vocab_size, devices = where(), Shards.open(shards).vocab_size, []
    took = seconds_of(lambda: devices.append(this_machine(vocab_size, CONTEXT)))
    rows = []
    for width in (48, 96, 160):
        rung = ladders.Rung(model_of(width, vocab_size, CONTEXT), steps, 10, 0)
        figures = pretrain_once(rung, shards)
        planned = rung.tokens / devices[0].tokens_per_second(rung.shape)
        actual = figures["train_seconds"]
        rows.append({"width": width, "parameters": rung.shape.parameters(), "tokens": rung.tokens, "actual_s": actual,
                     "planned_s": planned, "planned_over_actual": planned / actual,
                     "predicted_s": figures["predicted_seconds"],
                     "predicted_over_actual": figures["predicted_seconds"] / actual})  # fmt: skip
    speeds = [{"flops_per_token": s.flops_per_token, "tokens_per_second": s.tokens_per_second}
              for s in devices[0].speeds]  # fmt: skip
    return {"where": about, "load_average_after": [round(load, 2) for load in os.getloadavg()],
            "measurement_s": round(took, 1), "speeds": speeds, "rows": rows}  # fmt: skip


def main() -> None:
    """Measure the parts that were asked for, cheapest first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PARTS), help="parts, separated by commas")
    parser.add_argument("--shards", type=Path, default=ROOT / "data" / "shards", help="a product of tokenize")
    parser.add_argument("--chinchilla", type=Path, help="svg_extracted_data.csv, for the part refit")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON file")
    arguments = parser.parse_args()
    wanted = arguments.only.split(",")
    if unknown := sorted(set(wanted) - set(PARTS)):
        parser.error(f"no part {unknown[0]!r}; the parts are {', '.join(PARTS)}")
    if "refit" in wanted and arguments.chinchilla is None:
        print("refit is left out: it needs --chinchilla")
        wanted.remove("refit")
    if {"machine", "ladder"} & set(wanted) and not (arguments.shards / "manifest.json").is_file():
        parser.error(f"--shards {arguments.shards}: no shards there; `groundup run tokenize` makes them")
    parts = {
        "planted": measure_planted,
        "refit": lambda: measure_refit(arguments.chinchilla),
        "machine": lambda: measure_machine(arguments.shards),
        "ladder": lambda: measure_ladder(arguments.shards),
    }
    for part in PARTS:
        if part in wanted:
            found = parts[part]()
            print(part, json.dumps({name: figure for name, figure in found.items() if name != "where"}, indent=2))
            print(save("scaling", {part: found}, arguments.results))


if __name__ == "__main__":
    main()

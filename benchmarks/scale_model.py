"""What the stages need as the corpus grows, predicted from small runs and checked against larger ones.

    python -m benchmarks.scale_model --measure [--only clean,decide]    about fifteen minutes on two cores
    python -m benchmarks.scale_model [--check]                          the tables of docs/scale.md, from the results

Each job (`scale_jobs`) runs on half of a small corpus, on it and on twice as much, --rounds times each, in turn.
Through the medians goes a straight line in the number of units (pages, documents, bytes, tokens): what a start costs
and what a unit costs, for CPU seconds of driver and workers, for their peak memory and for bytes on disk. The lines
then say what 4 and 16 times the corpus will take, those are run as often, and the two are compared. What is said of
larger corpora (`scale_plan`) comes from lines through all five sizes. Figures: benchmarks/results/scale_model.json.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks import scale_jobs, scale_plan
from benchmarks.measuring import RESULTS, ROOT, save, where

FEW = 0.5
"""The smallest run: large enough that all workers are started, that what is sorted at once reaches its limit, and that
most words of a sample are known."""
CALIBRATE, CHECK = (FEW, 1.0, 2.0), (4.0, 16.0)
ROUNDS = 3
TOLERANCE = 0.15
SLOWER = 0.6
"""Peak memory grows about with this power of the units where nothing is kept for each of them: buffers fill up to their
bounds, and of words only different ones are kept, of which a text of n words has about n to the power of 0.4 to 0.6
(Heaps 1978)."""
COUNTED = 0.9
"""And CPU seconds of training a tokenizer: all words are counted, different ones are merged."""
KEEPING = ("decide",)
"""Jobs that keep something in memory for each unit."""
QUANTITIES = {
    "cpu_s": "CPU seconds",
    "driver_peak_mb": "peak memory of the driver, MB",
    "worker_peak_mb": "peak memory of a worker, MB",
    "out_bytes": "bytes of the product",
    "scratch_bytes": "bytes on disk on the way",
}
PARTS = ("driver_cpu_s", "worker_cpu_s")
Line = tuple[float, float]
"""(what a start costs, what a unit costs)."""


def line(units: Sequence[float], values: Sequence[float]) -> Line:
    """The straight line with the least squared relative error; neither start nor slope is below 0."""
    x, y = np.asarray(units, float), np.asarray(values, float)
    if not y.any():
        return 0.0, 0.0
    weight = 1 / np.maximum(y, y.max() / 100)
    start, slope = np.linalg.lstsq(np.stack([weight, weight * x], axis=1), weight * y, rcond=None)[0]
    if slope < 0:
        return float(np.average(y, weights=weight**2)), 0.0
    if start < 0:
        return 0.0, float((weight**2 * x * y).sum() / (weight**2 * x * x).sum())
    return float(start), float(slope)


def at(found: Line, units: float) -> float:
    """What the line says."""
    return found[0] + found[1] * units


def effort(job: str, quantity: str, units: float, straight: bool = False) -> float:
    """Units as they count; one counts as one does among a million. `straight`: all count alike but what is ordered.

    Ordering n documents goes with n log n, memory without a list with n to the power SLOWER, words with COUNTED.
    """
    if job == "decide" and quantity.endswith("cpu_s"):
        return units * math.log2(units) / math.log2(1e6)
    if straight:
        return units
    if job == "vocabulary" and quantity.endswith("cpu_s"):
        return 1e6 * (units / 1e6) ** COUNTED
    if quantity.endswith("_peak_mb") and job not in KEEPING:
        return 1e6 * (units / 1e6) ** SLOWER
    return units


def measured(job: str, folder: Path, rounds: int) -> dict[str, Any]:
    """Calibrate a job and compare what its lines say with larger runs."""
    runs: dict[float, list[dict[str, Any]]] = {}
    for times in (*CALIBRATE, *CHECK) * rounds:
        runs.setdefault(times, []).append(scale_jobs.run(job, folder, times))
        runs[times][-1]["cpu_s"] = sum(runs[times][-1][part] for part in PARTS)
    middle = {
        times: {name: median(run[name] for run in found) for name in (*QUANTITIES, *PARTS, "units", "wall_s")}
        for times, found in runs.items()
    }
    extras = {name: value for name, value in runs[16.0][0].items() if name not in middle[16.0]}
    return judged(job, middle) | {
        "unit": scale_jobs.UNITS[job],
        "medians": {f"{times:g}x": {k: round(v, 4) for k, v in found.items()} for times, found in middle.items()},
        "all_cpu_s": {f"{times:g}x": [round(run["cpu_s"], 3) for run in found] for times, found in runs.items()},
        "extras": extras,
    }


def judged(job: str, middle: Mapping[float, dict[str, float]]) -> dict[str, Any]:
    """Lines through the medians of the small runs, how far they are off for the large ones, and lines through all.

    The plan goes far beyond what was measured: there all grows with the units themselves, the worst case.
    """
    lines, refitted = _lines(job, {times: middle[times] for times in CALIBRATE}), _lines(job, middle, straight=True)
    checks = [
        {"quantity": name, "times": times, "measured": round(middle[times][name], 4)}
        | {"predicted": round(at(lines[name], effort(job, name, middle[times]["units"])), 4)}
        for times in CHECK
        for name in QUANTITIES
        if middle[times][name]
    ]
    for row in checks:
        row["off"] = round(row["predicted"] / row["measured"] - 1, 4)
    return {
        "calibrated": {name: {"start": found[0], "unit": found[1]} for name, found in lines.items()},
        "lines": {name: {"start": found[0], "unit": found[1]} for name, found in refitted.items()},
        "checks": checks,
        "within": all(abs(row["off"]) <= TOLERANCE for row in checks),
    }


def _lines(job: str, middle: Mapping[float, dict[str, float]], straight: bool = False) -> dict[str, Line]:
    """The line of each quantity through these runs."""
    runs = middle.values()
    return {
        name: line([effort(job, name, run["units"], straight) for run in runs], [run[name] for run in runs])
        for name in (*QUANTITIES, *PARTS)
    }


def measure(jobs: Sequence[str], rounds: int) -> None:
    """Run the jobs that are asked for; each is saved as it ends."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory(prefix="groundup-scale-") as name:
        folder = Path(name)
        scale_jobs.prepare(folder, int(CHECK[-1]), jobs, (*CALIBRATE, *CHECK))
        for job in jobs:
            found = measured(job, folder, rounds) | {"rounds": rounds, "where": where()}
            save("scale_model", {job: found})
            for row in found["checks"]:
                told = f"{row['predicted']:14,.2f} predicted {row['measured']:14,.2f} measured {row['off']:+7.1%}"
                print(f"{job:10} {row['times']:4g}x {row['quantity']:16} {told}", flush=True)


MARK = "<!-- {}: made by python -m benchmarks.scale_model -->"
END = "<!-- end of {} -->"
NOT_YET = "(not measured yet)"


def results(folder: Path = RESULTS) -> dict[str, Any]:
    """What was measured, in the order of the jobs."""
    path = folder / "scale_model.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    return {job: found[job] for job in scale_jobs.JOBS if job in found}


def filled(text: str, found: dict[str, Any]) -> str:
    """The chapter with its tables between their markers. Raises `ValueError` for one without a place.

    Before all jobs were measured there are none.
    """
    whole = set(found) == set(scale_jobs.JOBS)
    for name, make in scale_plan.PLACES.items():
        first, last = MARK.format(name), END.format(name)
        pattern = re.compile(re.escape(first) + ".*?" + re.escape(last), re.DOTALL)
        if not pattern.search(text):
            raise ValueError(f"docs/scale.md lacks the markers {first} and {last}")
        between = f"{first}\n\n{make(found) if whole else NOT_YET}\n\n{last}"
        text = pattern.sub(lambda _, between=between: between, text)  # type: ignore[misc]
    return text


def main(arguments: list[str]) -> int:
    """Measure, or write or check the tables of docs/scale.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--only", default=",".join(scale_jobs.JOBS))
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args(arguments)
    if options.measure:
        measure(options.only.split(","), options.rounds)
    page = ROOT / "docs" / "scale.md"
    text = page.read_text()
    wanted = filled(text, results())
    if options.check and text != wanted:
        print("the tables of docs/scale.md are out of date; mend them with: python -m benchmarks.scale_model",
              file=sys.stderr)  # fmt: skip
        return 1
    if not options.check:
        page.write_text(wanted)
        print(f"{page} says what was measured")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

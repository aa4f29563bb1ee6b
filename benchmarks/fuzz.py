"""Feed every reader of foreign data with broken input, a target at a time, and write the counts down.

    python -m benchmarks.fuzz --executions 100000                    all targets
    python -m benchmarks.fuzz --targets warc,params --seconds 60     as many as fit into that time each

Where `atheris` is installed, libFuzzer chooses the inputs by the branches that they reach in our code; elsewhere they
are the kept corpus (tests/fuzz/corpus), mutated by a seeded generator. An input that makes a target fail is written
there as crash-*, and the run ends with 1. Figures go to benchmarks/results/fuzz.json.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import FunctionType
from typing import Any

from benchmarks import measuring
from benchmarks.fuzz_targets import CORPUS, TARGETS, Target, mutated, name_of

SLOWEST_S = 20.0
"""Processor seconds of one input beyond which it counts as a hang."""
LIBFUZZER_MODULES = ("llm_core", "apps.serving", "tasks.params", "tasks.secrets")


class Tally:
    """What became of a target's inputs."""

    def __init__(self, target: Target) -> None:
        self.target, self.outcomes, self.began = target, Counter[str](), time.process_time()
        self.slowest = 0.0

    def once(self, data: bytes) -> None:
        """Run one input. A crash or a hang is kept in the corpus and raised."""
        began = time.process_time()
        try:
            self.outcomes[self.target(data)] += 1
            spent = time.process_time() - began
            self.slowest = max(self.slowest, spent)
            if spent > SLOWEST_S:
                raise TimeoutError(f"{spent:.0f} s of processor time")
        except BaseException as error:
            if not isinstance(error, KeyboardInterrupt):
                (CORPUS / self.target.name).mkdir(parents=True, exist_ok=True)
                (CORPUS / self.target.name / f"crash-{name_of(data)}").write_bytes(data)
            raise

    def facts(self, how: str) -> dict[str, Any]:
        """For the results."""
        return {
            "executions": self.outcomes.total(),
            "outcomes": dict(sorted(self.outcomes.items())),
            "crashes": 0,
            "cpu_s": round(time.process_time() - self.began, 1),
            "slowest_cpu_s": round(self.slowest, 3),
            "inputs_by": how,
            "corpus": len(self.target.seeds()),
        }


def by_mutation(target: Target, executions: int, seconds: float, seed: int) -> dict[str, Any]:
    """The corpus itself, then inputs made from it; those that have a new outcome or length class join it."""
    draw, tally, corpus = random.Random(f"{target.name} {seed}"), Tally(target), target.seeds()
    known: set[tuple[str, int]] = set()
    for data in corpus:
        tally.once(data)
    while tally.outcomes.total() < executions and time.process_time() - tally.began < seconds:
        data = mutated(draw, corpus, target.words)
        before = dict(tally.outcomes)
        tally.once(data)
        outcome = next(name for name, count in tally.outcomes.items() if before.get(name) != count)
        if (mark := (outcome, len(data).bit_length())) not in known and len(corpus) < 500:
            known.add(mark)
            corpus.append(data)
    return tally.facts("mutation of the corpus")


def by_atheris(target: Target, executions: int, seconds: float, seed: int, out: Path) -> None:
    """libFuzzer ends the process itself, so the figures are written from within, at its last input."""
    import atheris

    tally = Tally(target)

    def once(data: bytes) -> None:
        tally.once(data)
        done = tally.outcomes.total()
        if done >= executions or time.process_time() - tally.began >= seconds:
            out.write_text(json.dumps(tally.facts(f"atheris {version('atheris')}")))
            os._exit(0)

    with tempfile.TemporaryDirectory() as found:
        words = Path(found) / "words"
        lines = ("".join(f"\\x{byte:02x}" for byte in word) for word in target.words)
        words.write_text("".join(f'"{line}"\n' for line in lines))
        (Path(found) / "corpus").mkdir()
        arguments = [f"-seed={seed}", f"-dict={words}", "-max_len=20000", "-rss_limit_mb=4096", "-print_final_stats=0"]
        arguments += ["-close_fd_mask=0", "-verbosity=0", str(Path(found) / "corpus"), str(CORPUS / target.name)]
        for name in [name for name in sys.modules if name.startswith(LIBFUZZER_MODULES)]:
            _instrument(atheris, sys.modules[name])
        atheris.Setup([sys.argv[0], *arguments], once)
        atheris.Fuzz()


def _instrument(atheris: Any, module: Any) -> None:
    """Count branches in a module's own functions and methods."""
    classes = [v for v in vars(module).values() if isinstance(v, type) and v.__module__ == module.__name__]
    for owner in [module, *classes]:
        for value in list(vars(owner).values()):
            if isinstance(value, FunctionType) and value.__module__ == module.__name__:
                atheris.instrument_func(value)


def has_atheris() -> bool:
    """Whether libFuzzer can be had."""
    try:
        import atheris  # noqa: F401
    except ImportError:
        return False
    return True


def main() -> int:
    """Run the targets; 1 if one crashed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--executions", type=int, default=100_000, help="inputs a target")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="processor seconds a target, at most")
    parser.add_argument("--targets", default=",".join(TARGETS))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--mutation", action="store_true", help="without atheris, though it is there")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        name, out = given.child.split(",", 1)
        if given.mutation or not has_atheris():
            facts = by_mutation(TARGETS[name], given.executions, given.seconds, given.seed)
            Path(out).write_text(json.dumps(facts))
        else:
            by_atheris(TARGETS[name], given.executions, given.seconds, given.seed, Path(out))
        return 0
    found: dict[str, dict[str, Any]] = {}
    for name in given.targets.split(","):
        found[name] = run_child(name, given)
        measuring.save("fuzz", {"targets": _known() | found, "where": measuring.where(), "versions": _versions()})
    return int(any(facts["crashes"] for facts in found.values()))


def run_child(name: str, given: argparse.Namespace) -> dict[str, Any]:
    """One target in a process of its own: a crash in C ends that process alone."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "facts.json"
        command = [sys.executable, "-m", "benchmarks.fuzz", "--child", f"{name},{out}", "--seed", str(given.seed)]
        command += ["--executions", str(given.executions), "--seconds", str(given.seconds)]
        command += ["--mutation"] if given.mutation else []
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
        if out.is_file():
            facts: dict[str, Any] = json.loads(out.read_text())
        else:
            facts = {"crashes": 1, "said": (done.stdout + done.stderr)[-3000:]}
    print(name, json.dumps({key: value for key, value in facts.items() if key != "said"}), flush=True)
    if facts["crashes"]:
        print(facts["said"], file=sys.stderr)
    return facts


def _known() -> dict[str, Any]:
    path = measuring.RESULTS / "fuzz.json"
    return json.loads(path.read_text())["targets"] if path.is_file() else {}


def _versions() -> dict[str, str]:
    found = {}
    for package in ("atheris", "lxml", "trafilatura", "resiliparse", "fastwarc", "tiktoken", "pydantic", "PyYAML"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    return found


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Exception:
        traceback.print_exc()
        sys.exit(1)

"""Training on two CPU cores against HF Llama, HF GPT-2, litgpt and nanochat's recipe: speed, memory, start, quality.

    python -m benchmarks.train_cpu                                     everything (about 25 minutes)
    python -m benchmarks.train_cpu --part speed --config S50           one part, and of it one configuration
    python -m benchmarks.train_cpu --part quality --seeds 1            one seed of the quality race

Every part lays its figures over those of benchmarks/results/train_cpu.json, so the whole can be made in pieces. Each
trainer is a process of its own (`train_cpu_child.py`); the parent lets them train in turn, a few steps each, and takes
the medians, so that other work on the machine falls on all alike. All train the same weight shapes with AdamW in fp32
on two threads: peers on torch's threads, ours on two passes side by side. `shipped` runs peers as they come,
`same_allocator` with the malloc settings that our trainer makes for itself. `--wait passive` sets OMP_WAIT_POLICY for
all; without it the peers' threads spin, which is faster on an idle machine and far slower on a busy one.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

from benchmarks.measuring import RESULTS, ROOT, save, where
from benchmarks.train_cpu_child import CONFIGS

PEERS = ("hf_llama", "hf_gpt2", "litgpt")
STEPS = {"C1": 40, "C10": 2, "S8": 3, "S50": 1}
"""Steps of one turn: one to three seconds."""
LIMITS = {"C1": 1.05, "C10": 1.05, "S8": 1.05, "S50": 1.15}


class Trainer:
    """A child process that trains when it is told."""

    def __init__(self, name: str, config: str, allocator: bool, given: argparse.Namespace, log: IO[str]) -> None:
        python = str(given.peers2 / "bin" / "python") if name == "litgpt" else sys.executable
        command = [python, "-m", "benchmarks.train_cpu_child", name, config, *(["--allocator"] if allocator else [])]
        self.tokens = CONFIGS[config]["batch"] * CONFIGS[config]["context"]
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=_environment(name, given), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=log, text=True,
        )  # fmt: skip
        self.seconds: list[float] = []
        self.cpu: list[float] = []
        self.first_step = self.memory = 0.0

    def ready(self) -> None:
        """Wait for the first step."""
        self.first_step = self.answer()["first_step"]

    def answer(self) -> dict[str, float]:
        """The next line of the child."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{' '.join(map(str, self.process.args))}: ended early; see the log")  # type: ignore[arg-type]
        found: dict[str, float] = json.loads(line)
        return found

    def turn(self, steps: int, keep: bool = True) -> None:
        """Train so many steps; `keep`: count them."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        told = self.answer()
        if keep:
            self.seconds.append(told["seconds"] / steps)
            self.cpu.append(told["cpu"] / steps)

    def end(self) -> None:
        """Ask for the peak of memory and let the child go."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.memory = self.answer()["memory"]
        self.process.wait()

    def figures(self) -> dict[str, Any]:
        """Medians."""
        return {
            "tokens_per_second": round(self.tokens / statistics.median(self.seconds), 1),
            "tokens_per_cpu_second": round(self.tokens / statistics.median(self.cpu), 1),
            "peak_memory_gb": round(self.memory / 1e9, 3),
            "seconds_a_step": [round(value, 4) for value in self.seconds],
        }


def _environment(name: str, given: argparse.Namespace) -> dict[str, str]:
    changes = {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    if name.startswith("ours") or given.wait == "passive":
        changes["OMP_WAIT_POLICY"] = "PASSIVE"
    return os.environ | changes


def speed(config: str, allocator: bool, given: argparse.Namespace) -> dict[str, Any]:
    """One configuration, all trainers in turn."""
    with tempfile.TemporaryFile("w+") as log, ExitStack() as ended:
        trainers: dict[str, Trainer] = {}
        for name in (f"ours_{given.architecture}", *PEERS):
            trainers[name] = Trainer(name, config, allocator, given, log)
            ended.callback(trainers[name].process.kill)
        for trainer in trainers.values():
            trainer.ready()
        for pair in range(given.pairs + 1):
            for trainer in trainers.values():
                trainer.turn(STEPS[config], keep=pair > 0)
        for trainer in trainers.values():
            trainer.end()
    mine = trainers.pop(f"ours_{given.architecture}")
    ratios = {
        name: statistics.median(b / a for a, b in zip(mine.seconds, peer.seconds, strict=True))
        for name, peer in trainers.items()
    }
    hardest = min(ratios, key=lambda name: ratios[name])
    smallest = min(trainers, key=lambda name: trainers[name].memory)
    return {
        "ours": mine.figures(),
        "peers": {name: peer.figures() for name, peer in trainers.items()},
        "speed_ratio": {name: round(value, 3) for name, value in ratios.items()},
        "speed_of_best_peer": {"peer": hardest, "ratio": round(ratios[hardest], 3), "limit": LIMITS[config]},
        "memory_of_best_peer": {
            "peer": smallest,
            "ratio": round(mine.memory / trainers[smallest].memory, 3),
            "limit": 1,
        },
        "pairs": given.pairs,
        "wait": given.wait,
        "machine": where(),
    }


def start(given: argparse.Namespace) -> dict[str, Any]:
    """Seconds from the process's first line to the end of its first step (median of three), and the limit."""
    names = (f"ours_{given.architecture}", "hf_llama", "litgpt")
    found: dict[str, list[float]] = {name: [] for name in names}
    with tempfile.TemporaryFile("w+") as log:
        for _ in range(3):
            for name in names:
                trainer = Trainer(name, "S8", False, given, log)
                trainer.ready()
                found[name].append(round(trainer.first_step, 2))
                trainer.end()
    medians = {name: statistics.median(values) for name, values in found.items()}
    return {"seconds": medians, "all": found, "limit": 4.0, "config": "S8", "machine": where()}


def quality(given: argparse.Namespace) -> dict[str, Any]:
    """Test loss after the same seconds, seed by seed, ours and nanochat's recipe in turn."""
    common = [
        "--text",
        str(given.text),
        "--seconds",
        str(given.seconds),
        "--clock",
        given.clock,
        "--split",
        given.split,
    ]
    settings = {"ours": given.ours.split(), "nanochat": [*given.peer.split(), "--nanochat", str(given.nanochat)]}
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in settings}
    for seed in range(1, given.seeds + 1):
        for name, own in settings.items():
            command = [sys.executable, "-m", "benchmarks.train_cpu_quality", name, *common, "--seed", str(seed), *own]
            environment = _environment(name, given)
            done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(done.stderr[-2000:])
            rows[name].append(json.loads(done.stdout.splitlines()[-1]))
            print(name, seed, rows[name][-1], flush=True)
        save("train_cpu", {"quality": _race(rows, given)})
    return _race(rows, given)


def _race(rows: dict[str, list[dict[str, float]]], given: argparse.Namespace) -> dict[str, Any]:
    """The race so far."""
    means = {name: statistics.fmean(row["loss"] for row in found) for name, found in rows.items()}
    return {
        "runs": rows,
        "mean_loss": {name: round(value, 4) for name, value in means.items()},
        "below_nanochat_nats": round(means["nanochat"] - means["ours"], 4),
        "limit": 0.03,
        "settings": {"ours": given.ours, "nanochat": given.peer, "seconds": given.seconds, "clock": given.clock},
        "split": given.split,
        "wait": given.wait,
        "machine": where(),
    }


def main() -> None:
    """Measure the parts that are asked for and lay them over the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=("speed", "start", "quality"), action="append")
    parser.add_argument("--config", choices=CONFIGS, action="append")
    parser.add_argument("--allocator", choices=("shipped", "same_allocator"), action="append")
    parser.add_argument("--architecture", default="llama", choices=("llama", "qwen3", "gpt2"))
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--wait", choices=("default", "passive"), default="default")
    parser.add_argument("--peers2", type=Path, default=ROOT / ".venv-peers", help="environment that holds litgpt")
    parser.add_argument("--nanochat", type=Path, default=Path("nanochat"), help="a checkout of karpathy/nanochat")
    parser.add_argument("--text", type=Path, default=Path("input.txt"), help="tinyshakespeare's input.txt")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=100.0)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--split", choices=("tune", "test"), default="test")
    parser.add_argument("--ours", default="", help="settings of ours in the quality race")
    parser.add_argument("--peer", default="--compile", help="settings of nanochat in the quality race")
    given = parser.parse_args()
    for part in given.part or ("speed", "start", "quality"):
        if part == "start":
            save("train_cpu", {"start": start(given)})
        elif part == "quality":
            save("train_cpu", {"quality": quality(given)})
        else:
            for config in given.config or CONFIGS:
                for kind in given.allocator or ("shipped", "same_allocator"):
                    found = speed(config, kind == "same_allocator", given)
                    save("train_cpu", {f"{config} {kind}": found})
                    print(config, kind, found["speed_ratio"], found["memory_of_best_peer"], flush=True)
    print(RESULTS / "train_cpu.json")


if __name__ == "__main__":
    main()

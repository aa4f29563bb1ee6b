"""Training speed on one GPU: `python -m benchmarks.train_gpu [--modded PATH]`. Needs torch and numpy, nothing else.

For each model of --models a few dozen steps of the project's own loop (the one that pretrain runs): tokens a second,
share of the peak that is used (6 per matmul weight and attention, over 989 TFLOP/s, NVIDIA's dense bf16 figure for
H100 and H200, and over the peak measured here), memory, and what part of a step goes into making its batch. Beside it,
on the same card and in turns, the public single-file script of modded-nanogpt's optimization track (--modded is the
checkout of github.com/KellerJordan/modded-nanogpt; its own data format, random tokens, ended after --peer-steps steps).

124M parameters, T = 1024, 524,288 tokens a step by default. `--device cpu --tiny` runs the same code at a size for
which a CPU will do; its figures mean nothing. Results go to benchmarks/results/train_gpu.json (--results names another
folder).
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llm_core import artifacts
from llm_core.contract import BadInput, Event, Metric
from llm_core.model.config import ModelConfig
from llm_core.model.transformer import Transformer
from llm_core.train.batches import PageBatches, Windows, next_token_loss_on
from llm_core.train.loop import LoopOptions, fit
from llm_core.train.machine import FORMATS, Machine, prepare
from llm_core.train.optim import OptimizerOptions, make_optimizer
from llm_core.train.peak import peak_flops
from llm_core.train.schedule import warmup_stable_decay

ROOT = Path(__file__).resolve().parents[1]
SPEC_FLOPS = 989e12
PEER_SCRIPT = Path("records/track_3_optimization/train_gpt_simple.py")
PEER_FLOPS_PER_TOKEN = 6 * 123.6e6 + 12 * 12 * 768 * 1024
"""Of the peer's model: the matmul weights of 12 layers of 768 and a head of 50,304, and attention over 1,024."""


@dataclass(frozen=True)
class Size:
    """What is trained: tokens of a step and of a sequence, sequences of a pass, steps, and how many of them warm up."""

    tokens: int
    context: int
    rows: int
    steps: int
    warmup: int
    vocab_size: int
    overrides: dict[str, Any]


FULL = Size(524_288, 1024, 64, 60, 20, 50_304, {"dropout": 0.0})
TINY = Size(512, 64, 4, 8, 3, 512, {"dropout": 0.0, "layers": 2, "heads": 2, "width": 32})


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--models", default="speedrun,gpt2-124m", help="presets, separated by commas")
    parser.add_argument("--rows", type=int, help="sequences of one pass; halved while memory does not suffice")
    parser.add_argument("--pairs", type=int, default=2, help="how often each is measured, in turns")
    parser.add_argument("--modded", type=Path, help="checkout of KellerJordan/modded-nanogpt")
    parser.add_argument("--peer-steps", type=int, default=40)
    parser.add_argument("--compile", choices=("on", "off"), help="default: on with a GPU")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    asked = parser.parse_args(arguments)
    size = TINY if asked.tiny else FULL
    machine = prepare(device=asked.device)
    compiled = machine.device.type == "cuda" if asked.compile is None else asked.compile == "on"
    found: dict[str, list[dict[str, float]]] = {}
    for _ in range(asked.pairs):
        for name in asked.models.split(","):
            found.setdefault(name, []).append(ours(name, size, asked.rows or size.rows, machine, compiled))
        if asked.modded:
            found.setdefault("modded-nanogpt track 3", []).append(peer(asked.modded, size, asked.peer_steps))
    result = {"where": where(machine), "size": vars(size), "compiled": compiled, "runs": found, "ratio": ratios(found)}
    result |= {"median": {name: medians(runs) for name, runs in found.items()}}
    asked.results.mkdir(parents=True, exist_ok=True)
    name = "train_gpu_tiny.json" if asked.tiny else "train_gpu.json"
    artifacts.write_atomic(asked.results / name, artifacts.dump_json(result))
    print(artifacts.dump_json({key: result[key] for key in ("median", "ratio")}).decode())
    return 0


def ours(preset: str, size: Size, rows: int, machine: Machine, compiled: bool) -> dict[str, float]:
    """Figures of the project's loop; a pass takes half the sequences for as long as memory does not suffice."""
    sequences = size.tokens // size.context
    while True:
        try:
            return _train(preset, size, sequences // rows, machine, compiled)
        except BadInput as error:
            if "out of memory" not in str(error) or rows == 1:
                raise
            rows //= 2
            torch.cuda.empty_cache()


def _train(preset: str, size: Size, passes: int, machine: Machine, compiled: bool) -> dict[str, float]:
    torch.manual_seed(0)
    config = ModelConfig.preset(preset, vocab_size=size.vocab_size, context=size.context, **size.overrides)
    model = Transformer(config).to(machine.device)
    draw = np.random.default_rng(0)
    tokens = (draw.random(8 * size.tokens + 1) ** 3 * size.vocab_size).astype(np.uint16)  # skewed, as words are
    windows = Windows(lambda _: tokens, size.context, 0)
    batches = PageBatches(windows, None, 0.0, size.tokens // size.context, passes, vocab_size=size.vocab_size)
    making: list[float] = []

    def batch(number: int) -> Any:
        began = time.perf_counter()
        made = batches(number)
        making.append(time.perf_counter() - began)
        return made

    told: list[Metric] = []

    def emit(event: Event) -> None:
        if isinstance(event, Metric):
            told.append(event)

    if machine.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    on_gpu = machine.device.type == "cuda"
    with tempfile.TemporaryDirectory() as scratch:
        fit(
            model,
            batch=batch,
            objective=next_token_loss_on(machine),
            optimizer=make_optimizer(model, OptimizerOptions(name="muon")),
            schedule=warmup_stable_decay(size.steps),
            options=LoopOptions(
                steps=size.steps,
                accumulate=passes,
                lanes=machine.lanes,
                metric_every=1,
                save_every_seconds=1e9,
                look_every=10 if on_gpu else 1,
                compiled=compiled,
                flops_per_token=config.flops_per_token(),
            ),
            scratch=Path(scratch),
            emit=emit,
            precision=machine.make_precision(),
        )
    seconds = time.perf_counter() - began
    figures = _speeds([event.values for event in told if event.step > size.warmup], config, size.tokens)
    making_share = statistics.median(making) * passes / (size.tokens / figures["tokens_per_second"])
    return figures | {
        "batch_making_share": round(making_share, 5),
        "passes": passes,
        "first_loss": round(told[0].values["train/loss"], 3),
        "last_loss": round(told[-1].values["train/loss"], 3),
        "parameters": config.parameters(),
        "seconds_in_all": round(seconds, 1),
    }


def _speeds(steady: Sequence[Mapping[str, float]], config: ModelConfig, tokens: int) -> dict[str, float]:
    """Medians over the steps of `tokens` tokens that came after the warming up."""
    speed = statistics.median(values["train/tokens_per_second"] for values in steady)
    flops = speed * config.flops_per_token()
    return {
        "tokens_per_second": round(speed),
        "step_ms": round(1000 * tokens / speed, 2),
        "tflops": round(flops / 1e12, 3),
        "mfu_of_989_tflops": round(flops / SPEC_FLOPS, 4),
        "mfu_of_measured_peak": round(statistics.median(values["train/mfu"] for values in steady), 4),
        "peak_memory_gb": round(max(values["train/memory_gb"] for values in steady), 2),
    }


def peer(checkout: Path, size: Size, steps: int) -> dict[str, float]:
    """Figures of the public script, which trains for hours: it is ended after `steps` steps.

    It says `step:12/3250 train_time:...` after each step without waiting for the card, so what counts is when the lines
    come, over the second half of the steps: the host cannot run ahead of the card by more than a fraction of a step.
    """
    script = (checkout / PEER_SCRIPT).resolve()
    if not script.is_file():
        raise SystemExit(f"{script}: not there; --modded names a checkout of KellerJordan/modded-nanogpt")
    with tempfile.TemporaryDirectory() as folder:
        _peer_data(Path(folder), size, steps)
        environment = os.environ | {
            "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29531",
            "PYTHONUNBUFFERED": "1",
        }  # fmt: skip
        child = subprocess.Popen(
            [sys.executable, str(script)], cwd=folder, env=environment, stdout=subprocess.PIPE, text=True
        )
        try:
            times = dict(_peer_steps(child, steps))
        finally:
            child.kill()
            child.wait()
    first, last = min(step for step in times if step >= max(times) // 2), max(times)
    if last < steps:
        raise SystemExit(f"{script}: ended after {last} of {steps} steps, exit code {child.returncode}")
    step = (times[last] - times[first]) / (last - first)
    speed = size.tokens / step
    flops = speed * PEER_FLOPS_PER_TOKEN
    return {
        "tokens_per_second": round(speed),
        "step_ms": round(1000 * step, 2),
        "mfu_of_989_tflops": round(flops / SPEC_FLOPS, 4),
        "steps_timed": last - first,
    }


def _peer_steps(child: subprocess.Popen[str], steps: int) -> Iterator[tuple[int, float]]:
    assert child.stdout is not None
    yield 0, time.perf_counter()
    for line in child.stdout:
        if found := re.match(r"step:(\d+)/\d+ train_time", line):
            yield int(found[1]), time.perf_counter()
            if int(found[1]) >= steps:
                return


def _peer_data(folder: Path, size: Size, steps: int) -> None:
    """Random tokens in the script's own format: 256 int32 of header, then uint16 ids."""
    place = folder / "data" / "fineweb10B"
    place.mkdir(parents=True)
    draw = np.random.default_rng(0)
    for split, batches in (("val", 21), ("train", steps + 2)):
        count = batches * size.tokens
        header = np.zeros(256, dtype=np.int32)
        header[:3] = 20240520, 1, count
        with open(place / f"fineweb_{split}_000000.bin", "wb") as handle:
            handle.write(header.tobytes())
            handle.write((draw.random(count) ** 3 * min(50_257, size.vocab_size)).astype(np.uint16).tobytes())


def medians(runs: list[dict[str, float]]) -> dict[str, float]:
    """The median of each figure over the runs."""
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]}


def ratios(found: dict[str, list[dict[str, float]]]) -> dict[str, float]:
    """Our tokens a second over the peer's, pair by pair, as their median."""
    theirs = found.get("modded-nanogpt track 3", [])
    return {
        name: round(statistics.median(a["tokens_per_second"] / b["tokens_per_second"] for a, b in zip(runs, theirs)), 3)  # noqa: B905
        for name, runs in found.items()
        if theirs and runs is not theirs
    }


def where(machine: Machine) -> dict[str, Any]:
    """On what and with what it was measured."""
    git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    on_gpu = machine.device.type == "cuda"
    dtype = FORMATS.get(machine.precision, torch.float32)
    return {
        "device": torch.cuda.get_device_name() if on_gpu else f"{platform.machine()}, {os.cpu_count()} cores",
        "measured_peak_tflops": round(peak_flops(str(machine.device), dtype, machine.lanes) / 1e12, 3),
        "precision": machine.precision,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "commit": git.stdout.strip() if git.returncode == 0 else "",
        "measured": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "load_average": [round(load, 2) for load in os.getloadavg()],
    }


if __name__ == "__main__":
    sys.exit(main())

"""What serving costs: `python -m benchmarks.serve [--only throughput,first_token]`.

throughput   the same 16 streamed answers (equal prompts, seeds, and so equal tokens) one after another, and all
             at once; rounds alternate, medians are compared
first_token  seconds until the first token of a short prompt arrives while 4 other streams run

`groundup serve` runs as its own process on loopback, the client is this process: plain sockets, so that it takes little
of the two cores. Models have random weights, as only their size matters here: `tiny` is the preset of that name with a
longer context, `default` the size that `groundup run` trains. Figures go to benchmarks/results/serve.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import pydoc_data.topics
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from benchmarks.measuring import ROOT, save, where
from llm_core.data import bpe
from llm_core.model.checkpoint import save_model
from llm_core.model.config import ModelConfig
from llm_core.model.transformer import Transformer

PARTS = ("throughput", "first_token")
STREAMS = 16
TOKENS = 128
CONTEXT = 4096
MODELS: dict[str, dict[str, Any]] = {
    "tiny": {"name": "tiny", "context": CONTEXT},
    "default": {"name": "qwen3", "context": CONTEXT},
}
WORDS = "What does the function return when the list is empty?"


def make_model(folder: Path, kind: str) -> Path:
    """A model of the size with random weights, and a tokenizer of its vocabulary's size."""
    sizes = dict(MODELS[kind])
    config = ModelConfig.preset(sizes.pop("name"), **sizes)
    tokenizer = bpe.train(list(pydoc_data.topics.topics.values()), config.vocab_size)
    torch.manual_seed(0)
    model = Transformer(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.05)
    place = folder / kind
    place.mkdir()
    save_model(model, place, tokenizer)
    return place


@contextmanager
def serving(model: Path) -> Iterator[tuple[int, psutil.Process]]:
    """`groundup serve` in a process of its own; its port, and the process."""
    command = [sys.executable, "-m", "flows.cli", "serve", "--model", str(model), "--port", "0"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        port = int(process.stdout.readline().partition("http://127.0.0.1:")[2].partition("/")[0])
        yield port, psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(60)


@dataclass(slots=True)
class Answer:
    """What a stream gave: seconds until its first token and until its end, and its tokens."""

    first_s: float
    all_s: float
    tokens: int


async def ask(port: int, seed: int, tokens: int, first: asyncio.Event | None = None) -> Answer:
    """One streamed completion; `first` is set when its first token is there."""
    body = json.dumps(
        {"model": "groundup", "prompt": WORDS, "max_tokens": tokens, "seed": seed, "stream": True, "ignore_eos": True,
         "stream_options": {"include_usage": True}}
    )  # fmt: skip
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nConnection: close\r\n"
    began = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        received = b""
        while b"data: {" not in received:
            if not (piece := await reader.read(65536)):
                raise SystemExit(f"the server answered {received.decode()}")
            received += piece
        first_s = time.perf_counter() - began
        if first is not None:
            first.set()
        while piece := await reader.read(65536):
            received += piece
        all_s = time.perf_counter() - began
    finally:
        writer.close()
    usage = json.loads(received.rpartition(b'"usage":')[2].partition(b"}")[0] + b"}")
    return Answer(first_s, all_s, usage["completion_tokens"])


async def rate(port: int, *, at_once: bool) -> tuple[float, int]:
    """(tokens a second of the 16 answers, tokens)."""
    began = time.perf_counter()
    if at_once:
        answers = await asyncio.gather(*(ask(port, seed, TOKENS) for seed in range(STREAMS)))
    else:
        answers = [await ask(port, seed, TOKENS) for seed in range(STREAMS)]
    tokens = sum(answer.tokens for answer in answers)
    return tokens / (time.perf_counter() - began), tokens


def measure_throughput(model: Path, rounds: int) -> dict[str, Any]:
    """One after another, and at once."""
    found: dict[str, list[float]] = {"one_after_another": [], "at_once": []}
    costs: dict[str, list[float]] = {name: [] for name in found}
    with serving(model) as (port, process):
        asyncio.run(rate(port, at_once=True))
        for _ in range(rounds):
            for name, rates in found.items():
                before = cpu_seconds(process)
                speed, tokens = asyncio.run(rate(port, at_once=name == "at_once"))
                rates.append(speed)
                costs[name].append(1000 * (cpu_seconds(process) - before) / tokens)
    medians = {name: statistics.median(rates) for name, rates in found.items()}
    return {
        "streams": STREAMS,
        "tokens_each": TOKENS,
        "tokens_per_s": {name: round(value, 1) for name, value in medians.items()},
        "all_tokens_per_s": {name: [round(value, 1) for value in rates] for name, rates in found.items()},
        "at_once_over_one_after_another": round(medians["at_once"] / medians["one_after_another"], 2),
        "server_cpu_ms_per_token": {name: round(statistics.median(values), 3) for name, values in costs.items()},
    }


def cpu_seconds(process: psutil.Process) -> float:
    """CPU seconds that a process has used, all its threads."""
    times = process.cpu_times()
    return float(times.user + times.system)


async def first_tokens(port: int, rounds: int) -> list[float]:
    """Seconds until the first token, `rounds` times, with four streams running all the while."""
    running: dict[asyncio.Task[Answer], None] = {}
    found = []
    while len(found) < rounds:
        for task in [task for task in running if task.done()]:
            del running[task]
        while len(running) < 4:
            begun = asyncio.Event()
            running[asyncio.create_task(ask(port, len(found) + len(running), CONTEXT - 64, begun))] = None
            await begun.wait()
        found.append((await ask(port, len(found), 1)).first_s)
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    return found


def measure_first_token(model: Path, rounds: int) -> dict[str, Any]:
    """The median, the slowest, and all."""
    with serving(model) as (port, _):
        asyncio.run(rate(port, at_once=True))
        found = [1000 * value for value in asyncio.run(first_tokens(port, rounds))]
    return {
        "streams_running": 4,
        "median_ms": round(statistics.median(found), 2),
        "95th_percentile_ms": round(statistics.quantiles(found, n=20)[-1], 2),
        "slowest_ms": round(max(found), 2),
        "all_ms": [round(value, 2) for value in found],
    }


def main() -> None:
    """Measure the parts asked for and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PARTS))
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        models = {kind: make_model(Path(folder), kind) for kind in MODELS}
        for part in arguments.only.split(","):
            about = where()
            found = {
                kind: measure_throughput(model, arguments.rounds)
                if part == "throughput"
                else measure_first_token(model, 10 * arguments.rounds)
                for kind, model in models.items()
            }
            print(json.dumps({part: found}, indent=2))
            save("serve", {part: {**found, "where": about}})


if __name__ == "__main__":
    main()

"""One run of the quality race of benchmarks/train_cpu.py, in a process of its own: so many seconds, then the loss.

    python -m benchmarks.train_cpu_quality ours|nanochat --text input.txt --seed 1 --seconds 100 [--clock cpu] ...

Characters of one text, cut 80/10/10 in order into training, tuning and test; about 0.8 million parameters, context 64,
two threads. The learning rate follows the share of the time that is spent, for both alike; the clock stands while
libraries are imported, compilers run (for nanochat's compiled optimiser and model) and losses are measured. Loss: nats
a character over all windows of 64 of the split, each from its own start. Settings are chosen on the tuning split
(`--split tune`), the test split is looked at once, at the end (`--split test`).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

if sys.argv[1:2] == ["ours"]:
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as our runner sets it; torch reads it when it is imported

import torch

LAYERS, HEADS, WIDTH, CONTEXT = 4, 4, 128, 64
Windows = Callable[[int], torch.Tensor]


class Budget:
    """Seconds of training, by the wall or by the processor; stands still outside of `running`."""

    def __init__(self, seconds: float, clock: str) -> None:
        self.seconds, self.read = seconds, time.perf_counter if clock == "wall" else time.process_time
        self.spent, self.since = 0.0, self.read()

    def start(self) -> None:
        """From here on time counts."""
        self.since = self.read()

    def share(self) -> float:
        """Share of the budget that is spent."""
        return (self.read() - self.since) / self.seconds


def text_of(path: Path) -> tuple[dict[str, torch.Tensor], int]:
    """Character ids of the three splits, and how many characters there are."""
    text = path.read_text()
    ids = {character: number for number, character in enumerate(sorted(set(text)))}
    data = torch.tensor([ids[character] for character in text])
    first, second = int(0.8 * len(data)), int(0.9 * len(data))
    return {"train": data[:first], "tune": data[first:second], "test": data[second:]}, len(ids)


def loss_on(logits: Callable[[torch.Tensor], torch.Tensor], data: torch.Tensor) -> float:
    """Nats a character."""
    count = (len(data) - 1) // CONTEXT
    inputs, targets = data[: count * CONTEXT].view(count, -1), data[1 : count * CONTEXT + 1].view(count, -1)
    total = 0.0
    with torch.no_grad():
        for start in range(0, count, 256):
            out = logits(inputs[start : start + 256]).flatten(0, 1).float()
            total += float(
                torch.nn.functional.cross_entropy(out, targets[start : start + 256].flatten(), reduction="sum")
            )
    return total / (count * CONTEXT)


def falling(share: float, decay: float, floor: float) -> float:
    """1, then straight down to `floor` over the last share `decay`."""
    return 1.0 if share < 1 - decay else floor + (1 - floor) * max(0.0, 1 - share) / decay


def ours(given: argparse.Namespace, data: torch.Tensor, vocabulary: int) -> tuple[Callable[..., torch.Tensor], int]:
    """Our model, loop and optimiser, as the stage pretrain calls them."""
    import tempfile

    from llm_core.contract import Event, Progress, Stop
    from llm_core.model.config import ModelConfig
    from llm_core.model.transformer import Transformer
    from llm_core.train import batches
    from llm_core.train.loop import LoopOptions, fit
    from llm_core.train.machine import prepare
    from llm_core.train.optim import OptimizerOptions, make_optimizer

    machine = prepare(2, "cpu", "fp32", lanes=2)
    torch.manual_seed(given.seed)
    shape = {"vocab_size": vocabulary, "layers": LAYERS, "heads": HEADS, "width": WIDTH, "context": CONTEXT}
    model = Transformer(ModelConfig.preset(given.architecture, **shape))
    budget, tokens, steps = Budget(given.seconds, given.clock), data.numpy(), 0

    def emit(event: Event) -> None:
        nonlocal steps
        if isinstance(event, Progress):
            steps = int(event.done)
            if steps == 1:
                budget.start()
            elif budget.share() >= 1:
                raise Stop

    options = OptimizerOptions(
        "muon", given.rate, given.embedding_rate, given.matrix_rate, given.decay, given.matrix_decay,
        given.beta1, given.beta2, given.momentum, given.turns,
    )  # fmt: skip
    windows = batches.Windows(lambda _: tokens, CONTEXT, given.seed)
    with contextlib.suppress(Stop):
        fit(
            model,
            batch=batches.PageBatches(windows, None, 0.0, given.batch, machine.lanes),
            objective=batches.next_token_loss_on(machine),
            optimizer=make_optimizer(model, options),
            schedule=lambda step: min(1.0, (step + 1) / 40) * falling(budget.share(), given.fall, 0.02),
            options=LoopOptions(
                10**7, given.seed, accumulate=machine.lanes, lanes=machine.lanes, save_every_seconds=1e9
            ),
            scratch=Path(tempfile.mkdtemp()),
            emit=emit,
        )
    return model.eval(), steps


def nanochat(given: argparse.Namespace, data: torch.Tensor, vocabulary: int) -> tuple[Callable[..., torch.Tensor], int]:
    """nanochat's model, optimiser and schedules, from its own source; the loop is that of its scripts/base_train.py."""
    sys.path.insert(0, str(given.nanochat))
    from nanochat.gpt import GPT, GPTConfig

    torch.set_num_threads(2)
    torch.manual_seed(given.seed)
    shape = GPTConfig(CONTEXT, vocabulary, LAYERS, HEADS, HEADS, WIDTH, window_pattern="L")
    model = GPT(shape)
    model.init_weights()
    scale = given.rate_scale
    optimizer = model.setup_optimizer(
        unembedding_lr=0.008 * scale, embedding_lr=0.3 * scale, matrix_lr=0.02 * scale, weight_decay=given.peer_decay,
        scalar_lr=0.5 * scale,
    )  # fmt: skip
    first = {name: value.clone() for name, value in model.state_dict().items()}
    step_of: Any = torch.compile(model, dynamic=False) if given.compile else model
    draw, budget, step = torch.Generator().manual_seed(given.seed), Budget(given.seconds, given.clock), 0

    def one(share: float) -> None:
        starts = torch.randint(0, len(data) - CONTEXT - 1, (given.batch,), generator=draw).tolist()
        rows = torch.stack([data[start : start + CONTEXT + 1] for start in starts])
        step_of(rows[:, :-1].contiguous(), rows[:, 1:].contiguous()).backward()
        warm = 0.85 + 0.12 * min(1.0, step / 400)
        fallen = max(0.0, share - 0.35) / 0.65
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * min(1.0, (step + 1) / 40) * falling(share, 0.65, 0.05)
            if group["kind"] == "muon":
                group["momentum"] = warm if fallen == 0 else 0.97 * (1 - fallen) + 0.90 * fallen
                group["weight_decay"] = given.peer_decay * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))
        optimizer.step()
        model.zero_grad(set_to_none=True)

    for _ in range(3):  # compilers run here
        one(0.0)
    model.load_state_dict(first)
    optimizer.state.clear()
    budget.start()
    while (share := budget.share()) < 1:
        one(share)
        step += 1
    return model.eval(), step


def main() -> None:
    """Train and tell."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("contender", choices=("ours", "nanochat"))
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--nanochat", type=Path, default=Path("nanochat"))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=100.0)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--split", choices=("tune", "test"), default="tune")
    parser.add_argument("--batch", type=int, default=24)
    peer = parser.add_argument_group("nanochat")
    peer.add_argument("--rate-scale", type=float, default=1.0)
    peer.add_argument("--peer-decay", type=float, default=0.0)
    peer.add_argument("--compile", action="store_true")
    own = parser.add_argument_group("ours")
    own.add_argument("--architecture", default="qwen3")
    for name, value in (
        ("rate", 0.004), ("embedding-rate", 0.05), ("matrix-rate", 0.02), ("decay", 0.0), ("matrix-decay", 0.0),
        ("beta1", 0.8), ("beta2", 0.95), ("momentum", 0.95), ("fall", 0.6),
    ):  # fmt: skip
        own.add_argument(f"--{name}", type=float, default=value)
    own.add_argument("--turns", type=int, default=5)
    given = parser.parse_args()
    splits, vocabulary = text_of(given.text)
    train = ours if given.contender == "ours" else nanochat
    model, steps = train(given, splits["train"], vocabulary)
    parameters = sum(p.numel() for p in model.parameters())  # type: ignore[attr-defined]
    loss = loss_on(model, splits[given.split])
    print(json.dumps({"loss": round(loss, 4), "steps": steps, "parameters": parameters}))


if __name__ == "__main__":
    main()

"""Golden losses: thirty steps of the tiny preset give the losses that are checked in.

On the kind of machine that they were made on (processor, instruction set, torch) the losses are compared bit for bit;
elsewhere kernels round differently, and 1e-4 is allowed. A change that moves them says why and writes them anew:

    python tests/llm_core/train/test_golden.py
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from llm_core.contract import Event, Metric
from llm_core.model.config import ModelConfig
from llm_core.model.transformer import Transformer
from llm_core.train.batches import PageBatches, Windows, next_token_loss
from llm_core.train.loop import LoopOptions, fit
from llm_core.train.optim import OptimizerOptions, make_optimizer
from llm_core.train.schedule import make_schedule

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "losses.json"
STEPS = 30
RECIPES: dict[str, tuple[dict[str, Any], OptimizerOptions]] = {
    "qwen3, Muon": ({"architecture": "qwen3"}, OptimizerOptions("muon", 0.006, 0.1, 0.016, 0.03, 0.2, 0.8)),
    "seed, AdamW, dropout": ({"architecture": "seed", "dropout": 0.1}, OptimizerOptions("adamw", 3e-3)),
    "gpt2, AdamW": ({"architecture": "gpt2"}, OptimizerOptions("adamw", 3e-3)),
    "llama, AdamW": ({"architecture": "llama"}, OptimizerOptions("adamw", 3e-3)),
    "speedrun, Muon": ({"architecture": "speedrun"}, OptimizerOptions("muon", 0.006, 0.1, 0.016, 0.03, 0.2, 0.8)),
}


def processor() -> str:
    """What decides how kernels round."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    kind = [line.partition(":")[2].strip() for line in lines if line.startswith(("cpu family", "model\t", "vendor_id"))]
    return f"{' '.join(kind[:3])}, {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}"


def text() -> np.ndarray:
    """20,000 tokens of 512 kinds with something to learn: each is mostly followed by one of two others."""
    draw = np.random.Generator(np.random.PCG64(5))
    choice, noise = draw.integers(0, 2, 20_000), draw.integers(0, 512, 20_000)
    keep, tokens = draw.random(20_000) < 0.9, np.zeros(20_000, dtype=np.int64)
    for place in range(1, len(tokens)):
        following = (tokens[place - 1] * 7 + 13 + 101 * choice[place]) % 512
        tokens[place] = following if keep[place] else noise[place]
    return tokens


def losses(shape: dict[str, Any], optimizer: OptimizerOptions) -> list[float]:
    """The training loss of every step, one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(1)
    model = Transformer(ModelConfig.preset("tiny", **shape))
    tokens, events = text(), list[Event]()
    with tempfile.TemporaryDirectory() as scratch:
        fit(
            model,
            batch=PageBatches(Windows(lambda _: tokens, 64, 1), None, 0.0, rows=4, parts=2),
            objective=next_token_loss,
            optimizer=make_optimizer(model, optimizer),
            schedule=make_schedule("wsd", STEPS, 0.1, 0.6, 0.05),
            options=LoopOptions(STEPS, seed=1, accumulate=2, metric_every=1),
            scratch=Path(scratch),
            emit=events.append,
        )
    torch.set_num_threads(threads)
    return [event.values["train/loss"] for event in events if isinstance(event, Metric)]


@pytest.mark.parametrize("name", RECIPES)
def test_the_losses_are_the_golden_ones(name: str) -> None:
    golden = json.loads(GOLDEN.read_text())
    found = losses(*RECIPES[name])
    assert len(found) == STEPS
    assert found[-1] < found[0] - 0.01
    if golden["made_on"] == processor():
        assert found == golden["losses"][name]
    else:
        assert found == pytest.approx(golden["losses"][name], abs=1e-4)


if __name__ == "__main__":
    sys.path.insert(0, str(GOLDEN.parents[2]))
    made = {"made_on": processor(), "losses": {name: losses(*recipe) for name, recipe in RECIPES.items()}}
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text(json.dumps(made, indent=1) + "\n")

"""A small training run, alone or as one of several ranks: `torchrun ... ranks_job.py FOLDER WHAT [PARALLEL]`.

equal   train by DDP and by FSDP2, each undisturbed and each stopped half way; write losses and weights
killed  train by PARALLEL, printing each step, from the resume point in FOLDER if there is one
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llm_core.contract import Event, Metric, Stop
from llm_core.model.config import ModelConfig
from llm_core.model.transformer import Transformer
from llm_core.train.batches import PageBatches, Windows, next_token_loss
from llm_core.train.distributed import Ranks, join, leave
from llm_core.train.loop import LoopOptions, fit
from llm_core.train.optim import OptimizerOptions, make_optimizer
from llm_core.train.schedule import cosine

STEPS, PASSES, STOP_AFTER = 12, 4, 5


def train(
    scratch: Path,
    ranks: Ranks,
    *,
    slow: bool = False,
    tell: Callable[[Event], None] = lambda _: None,
    before: Callable[[int], None] = lambda _: None,
    **options: Any,
) -> tuple[dict[int, float], Transformer]:
    """Losses by step, and the trained model. With dropout and Muon; passes and matrices that are shared unevenly.

    Under DDP it is the simplest architecture, under FSDP2 the one with the most kinds of parameters. `tell` hears all
    events, `before` is called before a batch is loaded.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    shape = {"layers": 2, "heads": 1, "width": 26, "context": 16, "dropout": 0.1}
    architecture = {"ddp": "seed", "fsdp": "speedrun", "hsdp": "speedrun"}[ranks.parallel]
    model = Transformer(ModelConfig.preset(architecture, vocab_size=61, **shape))
    tokens = np.random.default_rng(0).integers(0, 61, 2000) ** 2 // 61  # skewed: there is something to learn
    losses: dict[int, float] = {}

    def emit(event: Event) -> None:
        if isinstance(event, Metric) and "train/loss" in event.values:
            losses[event.step] = event.values["train/loss"]
            if slow:
                print(event.step, flush=True)
                time.sleep(0.02)
        tell(event)

    batches = PageBatches(Windows(lambda _: tokens, 16, 7), None, 0.0, rows=10, parts=PASSES)

    def batch(number: int) -> Any:
        before(number)
        return batches(number)

    settings: dict[str, Any] = {"steps": STEPS, "seed": 7, "evaluate_every": 4, "accumulate": PASSES}
    fit(
        model,
        batch=batch,
        objective=next_token_loss,
        optimizer=lambda trained: make_optimizer(trained, OptimizerOptions(name="muon", learning_rate=0.02)),
        schedule=cosine(STEPS),
        options=LoopOptions(**settings | options),
        scratch=scratch,
        emit=emit,
        evaluate=lambda model: {"validation/size": float(sum(p.square().sum() for p in model.parameters()))},
        ranks=ranks,
    )
    return losses, model


def weights(model: Transformer) -> bytes:
    """All weights as bytes."""
    return b"".join(p.detach().numpy().tobytes() for _, p in sorted(model.named_parameters()))


class AfterTurns:
    """Asks to stop after so many turns of the loop, as a signal would; a turn is a step or an evaluation."""

    def __init__(self, turns: int) -> None:
        self.left = turns

    def __call__(self) -> bool:
        self.left -= 1
        return self.left < 0


def equal(folder: Path, me: Ranks) -> None:
    """Undisturbed, and stopped by a signal that only the last rank got."""
    for parallel in ("ddp", "fsdp"):
        ranks = Ranks(me.rank, me.world, parallel)  # type: ignore[arg-type]
        losses, model = train(folder / parallel / "whole", ranks)
        told = AfterTurns(STOP_AFTER + 1) if me.rank == me.world - 1 else (lambda: False)
        try:
            train(folder / parallel / "stopped", Ranks(me.rank, me.world, parallel, told))  # type: ignore[arg-type]
            raise SystemExit("the run was not stopped")
        except Stop:
            pass
        if me.first:
            (folder / parallel / "losses.json").write_text(json.dumps(losses))
            (folder / parallel / "weights").write_bytes(weights(model))
            points = sorted(path.name for path in (folder / parallel / "stopped").iterdir())
            (folder / parallel / "points.json").write_text(json.dumps(points))


def main() -> None:
    """As the first lines of this file say."""
    torch.set_num_threads(1)
    folder, what = Path(sys.argv[1]), sys.argv[2]
    me = join()
    if what == "equal":
        equal(folder, me)
    else:
        ranks = Ranks(me.rank, me.world, sys.argv[3])  # type: ignore[arg-type]
        _, model = train(folder, ranks, slow=True, save_every_seconds=0.0)
        if me.first:
            (folder / "weights").write_bytes(weights(model))
    leave()


if __name__ == "__main__":
    main()

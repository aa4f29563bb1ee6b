"""A stage on several machines that is disturbed: `python nodes_job.py WORKSPACE SETTINGS` runs it as the host.

SETTINGS is JSON of `Settings`. What the stage tells is printed as lines of JSON; so is its report, or why it failed.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from dataclasses import asdict
from pathlib import Path

import torch
from ranks_job import PASSES, STEPS, train

from llm_core.contract import BadInput, Config, Emit, Event, Note, Report
from llm_core.train.distributed import join, ranks_to_start
from llm_core.train.launch import run_ranks

SLOW_S = 1.0


class Settings(Config):
    """What is trained, where, and what goes wrong: `killed`, `slow`, `stopped` are ranks."""

    ranks: int = 2
    nodes: int = 2
    passes: int = PASSES
    restarts: int = 0
    hang_seconds: float = 60.0
    parallel: str = "ddp"
    steps: int = STEPS
    killed: int = -1
    """Killed in step 6, at the first attempt."""
    slow: int = -1
    """Takes long to load a batch."""
    stopped: int = -1
    """Stops (SIGSTOP), once only, when the slow one was named, or in step 6 if none is slow."""


def run(config: Settings, *, scratch: Path, emit: Emit) -> Report:
    """Train; the losses by step are the report's figures."""
    if start := ranks_to_start(config):
        module = Path(__file__).stem
        return Report(**run_ranks(module, config.model_dump(mode="json"), {"scratch": scratch}, start, emit))
    torch.set_num_threads(1)
    ranks = join(config.parallel)  # type: ignore[arg-type]
    named, killed, stopped = (scratch / name for name in ("slow-was-named", "was-killed", "was-stopped"))

    def tell(event: Event) -> None:
        if ranks.first:
            if isinstance(event, Note) and " is slow: " in event.text:
                named.touch()
            emit(event)

    def before(number: int) -> None:
        in_step_6 = number // PASSES == 6
        if ranks.rank == config.killed and in_step_6 and not killed.exists():
            killed.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if ranks.rank == config.slow:
            time.sleep(SLOW_S)
        go = named.exists() if config.slow >= 0 else in_step_6
        if ranks.rank == config.stopped and go and not stopped.exists():
            stopped.touch()
            os.kill(os.getpid(), signal.SIGSTOP)

    options = {"steps": config.steps, "save_every_seconds": 0.0 if config.steps == STEPS else 1000.0, "keep_last": 50}
    losses, _ = train(scratch / "points", ranks, tell=tell, before=before, **options)
    return Report({str(step): loss for step, loss in losses.items()})


def main() -> None:
    """As the first lines of this file say."""
    workspace, settings = Path(sys.argv[1]), Settings.model_validate_json(sys.argv[2])
    scratch = workspace / ".groundup" / "scratch" / "nodes-0"
    scratch.mkdir(parents=True, exist_ok=True)

    def emit(event: Event) -> None:
        print(json.dumps({"kind": type(event).__name__, **asdict(event)}), flush=True)

    try:
        print(json.dumps({"kind": "report", **run(settings, scratch=scratch, emit=emit).metrics}))
    except (BadInput, RuntimeError) as error:
        print(json.dumps({"kind": "failed", "type": type(error).__name__, "text": str(error)}))
        sys.exit(1)


if __name__ == "__main__":
    main()

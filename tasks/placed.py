"""What a run in a work pool does for the build that placed a stage there."""

from __future__ import annotations

import json
import os
from pathlib import Path

from prefect.logging import get_run_logger

from llm_core.contract import BadInput
from llm_core.pipeline import stage
from tasks import children, gpus, there
from tasks.children import Order, StageFailed
from tasks.workspace import Workspace


def carry_out(workspace: Path, verb: str, *, force: bool, refresh: bool, build: str, pool: str) -> None:
    """Run a stage here, once this machine's GPUs are free if it needs some. Raises what the stage said."""
    order = Order(Workspace.at(Path(workspace)), stage(verb).verb, force, refresh)
    os.environ["GROUNDUP_BUILD"] = build
    worker = os.environ.get("PREFECT__WORKER_NAME", "?")
    with children.living(order), gpus.slots(gpus.needed(order.space.config(verb)), waits=get_run_logger().info):
        code = there.carry_out(order, f"worker {worker} of the pool {pool}")
    if code:
        raise _failure(order, code)


def _failure(order: Order, code: int) -> Exception:
    lines = order.space.events(order.verb).read_text().splitlines()
    told = [event for event in map(json.loads, lines) if event["event"] == "failed"]
    if told and told[-1]["code"] == 2:
        return BadInput(told[-1]["text"])
    text = told[-1]["text"] if told else f"DVC ended with code {code}"
    return StageFailed(f"{order.verb}: {text} (log: {order.space.log(order.verb)})")

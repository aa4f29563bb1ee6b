"""`groundup plan`: what a budget buys on a device, from the workspace's shards and its own law where there are any."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from llm_core import artifacts
from llm_core.contract import BadInput
from llm_core.model.config import ModelConfig
from llm_core.scaling import devices, planner
from llm_core.scaling.laws import EPOCH, Law, read_law
from llm_core.scaling.prediction import distinct_tokens
from llm_core.settings.pretrain import PretrainConfig
from tasks import params
from tasks.workspace import Workspace

LAW = Path("scaling") / "law.json"
"""Where a ladder's law is kept, in the main workspace."""
HEADER = "# Written by `groundup plan`: {}.\n"


def plan(project: Path, budget: planner.Budget, device: str | None = None, context: int | None = None) -> planner.Plan:
    """The plan for a budget on a device of the table, or (None) on this machine, which is measured for 20 seconds.

    Where the project has shards, their size and vocabulary count, and the law of a ladder on the very same shards.
    Raises `BadInput`.
    """
    corpus, digest = corpus_of(project)
    law = law_of(project, digest)
    shape = pretrain_shape(project, corpus.vocab_size)
    length = context or (shape.context if corpus.tokens else None)
    found = devices.device(device) if device else this_machine(corpus.vocab_size, length or 128)
    return planner.make_plan(budget, found, corpus, law=law, context=length, architecture=shape.architecture)


def pretrain_shape(project: Path, vocab_size: int | None) -> ModelConfig:
    """The model of the workspace's own settings: its context and architecture are what a law was fitted with."""
    config = Workspace.at(project).config("pretrain")
    assert isinstance(config, PretrainConfig)
    return config.model.build(vocab_size)


def plan_hours(project: Path, hours: float) -> planner.Plan:
    """The plan for some hours on this machine."""
    return plan(project, planner.Budget(hours=hours))


def corpus_of(project: Path) -> tuple[planner.Corpus, str | None]:
    """What the project's shards hold and their digest; a corpus without end, and None, if there are none."""
    from llm_core.data.shards import Shards

    path = Workspace.at(project).product("shards")
    if not path.is_dir():
        return planner.Corpus(), None
    data = Shards.open(path)
    tokens = distinct_tokens(data.facts, len(data.tokens("train")))
    return planner.Corpus(tokens, data.vocab_size, "the workspace's shards"), artifacts.digest(path)


def law_of(project: Path, digest: str | None) -> Law:
    """The law of the ladder that was run on these shards, else Chinchilla's. Raises `BadInput` for a broken file."""
    path = project / LAW
    if digest is None or not path.is_file():
        return EPOCH
    law, facts = read_law(path)
    return law if facts.get("shards") == digest else EPOCH


def this_machine(vocab_size: int | None, context: int, seconds: float = 20.0) -> devices.Device:
    """This machine, measured by training steps of several sizes, as pretrain trains: a lane for each core."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as in the stages; read when torch is first imported
    from llm_core.train.machine import prepare
    from llm_core.train.optim import OptimizerOptions
    from llm_core.train.speed import measure_machine

    machine = prepare(lanes=len(os.sched_getaffinity(0)))
    options = OptimizerOptions(name="muon", newton_schulz_steps=3)
    return measure_machine(machine, options, seconds=seconds, vocab_size=vocab_size, context=context)


def as_json(found: planner.Plan) -> dict[str, Any]:
    """The plan for a script: its figures, what each law says, the notes, and the settings that `apply` writes."""
    figures = ("budget", "tokens", "steps", "batch_sequences", "passes", "learning_rate", "seconds", "memory", "loss")
    return {
        **{name: getattr(found, name) for name in figures},
        "device": found.device.name,
        "parameters": found.shape.parameters(),
        "flops": found.flops,
        "epochs": found.epochs,
        "law": found.law.name,
        "model": found.shape.to_dict(),
        "laws": planner.law_rows(found),
        "notes": list(found.notes),
        "settings": planner.overrides(found),
    }


def show(found: planner.Plan, console: Console) -> None:
    """Print the plan, what each law says of it, and the notes."""
    _print(planner.plan_rows(found), console)
    console.print()
    _print(planner.law_rows(found), console)
    for note in found.notes:
        console.print(f"\n{note}", highlight=False, markup=False)


def _print(rows: Sequence[Mapping[str, Any]], console: Console) -> None:
    table = Table(box=None, header_style="bold")
    for column in rows[0]:
        table.add_column(column.replace("_", " "), overflow="fold")
    for row in rows:
        table.add_row(*(f"{value:,.4g}" if isinstance(value, float) else str(value) for value in row.values()))
    console.print(table, highlight=False, markup=False)


def apply(project: Path, found: planner.Plan, name: str) -> Path:
    """Write the plan's settings as presets/NAME.yaml, which `groundup run --preset NAME` runs as an experiment.

    Raises `BadInput` if the name is taken by a preset that no plan wrote, or does not do for a file.
    """
    if not name.replace("-", "").replace("_", "").isalnum():
        raise BadInput(f"--apply {name}: use letters, digits, - and _ only")
    path = project / "presets" / f"{name}.yaml"
    start = HEADER.partition("{}")[0]
    if path.is_file() and not path.read_text().startswith(start):
        raise BadInput(f"--apply {name}: presets/{name}.yaml stands there already and was not written by a plan")
    chosen = planner.overrides(found)
    params.check(params.overlay(params.read(project / "params.yaml"), chosen), f"the plan {name}")
    text = HEADER.format(f"{found.budget} on {found.device.name}") + params.dump(chosen)
    artifacts.write_atomic(path, text.encode())
    return path

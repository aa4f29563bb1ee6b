"""A plan reads the project's shards and its own law, and becomes a preset that is run as an experiment."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from llm_core import artifacts
from llm_core.artifacts import new_product
from llm_core.contract import BadInput
from llm_core.scaling.devices import TABLE
from llm_core.scaling.laws import EPOCH, Law, write_law
from llm_core.scaling.planner import Budget, Corpus, make_plan
from tasks import experiments, params, planning

OWN = Law(E=2.8, A=82, B=156, alpha=0.389, beta=0.416, name="own ladder")


@pytest.fixture
def project(root: Path, tmp_path: Path) -> Path:
    """A main workspace without products."""
    folder = tmp_path / "project"
    text = (root / "params.yaml").read_text()
    experiments.make_workspace(root, folder, text, cache=folder / ".dvc" / "cache")
    (folder / "presets").unlink()
    shutil.copytree(root / "presets", folder / "presets")
    return folder


def make_shards(project: Path, tokens: int = 100) -> str:
    """A product that looks like shards to `planning`; its digest."""
    with new_product(project / "data" / "shards", "shards", {"tokens": tokens}) as folder:
        (folder / "train.bin").write_bytes(bytes(2 * tokens))
    return artifacts.digest(project / "data" / "shards")


def test_without_shards_the_tokens_are_without_end(project: Path) -> None:
    plan = planning.plan(project, Budget(hours=1), "cpu-8")
    assert plan.corpus == Corpus()
    assert plan.law is EPOCH
    assert plan.device is TABLE["cpu-8"]


def test_the_own_law_counts_only_on_the_very_shards_that_it_was_fitted_on(project: Path) -> None:
    digest = make_shards(project)
    assert planning.law_of(project, digest) is EPOCH
    write_law(project / planning.LAW, OWN, {"shards": digest})
    assert planning.law_of(project, digest) == OWN
    assert planning.law_of(project, None) is EPOCH
    assert planning.law_of(project, "another") is EPOCH
    (project / planning.LAW).write_text("{}")
    with pytest.raises(BadInput, match=r"law\.json"):
        planning.law_of(project, digest)


def test_a_plan_becomes_a_preset_that_experiments_take(project: Path) -> None:
    plan = make_plan(Budget(hours=2), TABLE["cpu-8"], Corpus(600_000, 2048, "shards"), law=OWN)
    path = planning.apply(project, plan, "two-hours")
    assert path == project / "presets" / "two-hours.yaml"
    space = experiments.create(project, "two-hours", experiments.overrides(project, "two-hours", []))
    config: Any = space.config("pretrain")
    assert config.steps == plan.steps
    assert config.model.width == plan.shape.width
    assert config.law.build().E == OWN.E
    assert path.read_text().startswith("# Written by `groundup plan`: 2 hours on cpu-8")
    first = path.read_bytes()
    assert planning.apply(project, plan, "two-hours").read_bytes() == first  # its own preset may be written again


def test_a_plan_is_shown_and_told_to_scripts(project: Path) -> None:
    plan = planning.plan(project, Budget(hours=3), "h100")
    lines = io.StringIO()
    planning.show(plan, Console(file=lines, width=200))
    told = lines.getvalue()
    assert f"{plan.shape.parameters():,}" in told
    assert "arXiv:2404.10102" in told
    assert plan.notes[0].split(":")[0] in told
    found = json.loads(json.dumps(planning.as_json(plan)))
    assert found["tokens"] == plan.tokens
    assert found["settings"]["pretrain"]["steps"] == plan.steps


def test_presets_that_no_plan_wrote_are_left_alone(project: Path) -> None:
    plan = make_plan(Budget(hours=2), TABLE["cpu-8"], Corpus(600_000, 2048, "shards"))
    before = (project / "presets" / "tiny.yaml").read_bytes()
    with pytest.raises(BadInput, match=r"presets/tiny\.yaml stands there already"):
        planning.apply(project, plan, "tiny")
    with pytest.raises(BadInput, match="letters, digits"):
        planning.apply(project, plan, "../params")
    assert (project / "presets" / "tiny.yaml").read_bytes() == before


def test_a_plan_without_shards_names_the_vocabulary_to_make(project: Path) -> None:
    plan = planning.plan(project, Budget(flops=1e18), "H100")
    chosen = params.read(planning.apply(project, plan, "big"))
    assert chosen["tokenize"]["vocab_size"] == plan.shape.vocab_size
    assert json.dumps(chosen["pretrain"]["law"]["name"]) == json.dumps(EPOCH.name)

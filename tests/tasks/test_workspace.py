"""A workspace names pieces of work: equal ones go on from their resume points, and no other is taken for them."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from llm_core.pipeline import stage
from tasks import experiments
from tasks.workspace import Workspace


@pytest.fixture
def space(root: Path, tmp_path: Path) -> Workspace:
    return experiments.make_workspace(root, tmp_path / "space", (root / "params.yaml").read_text(), cache=tmp_path)


def fingerprint(space: Workspace, verb: str = "pretrain", **settings: object) -> str:
    """The fingerprint of a stage under changed settings and the same inputs."""
    content = yaml.safe_load((space.root / "params.yaml").read_text())
    content[verb] = content[verb] | settings
    (space.root / "params.yaml").write_text(yaml.safe_dump(content))
    return Workspace.at(space.root).fingerprint(stage(verb), {"shards": "ab"})


def test_work_goes_on_when_only_the_way_of_computing_changed(space: Workspace) -> None:
    begun = fingerprint(space)
    for changed in ({"ranks": 2}, {"parallel": "fsdp"}, {"device": "cpu", "threads": 1}, {"keep_last": 5}):
        assert fingerprint(space, **changed) == begun, changed
    assert fingerprint(space, steps=3) != begun


def test_every_stage_has_settings_that_are_told_apart(space: Workspace) -> None:
    for verb in ("sft", "collect", "reward", "align", "evaluate"):
        begun = fingerprint(space, verb)
        assert fingerprint(space, verb, threads=2) == begun
        assert fingerprint(space, verb, seed=77) != begun


def test_forced_work_begins_anew_but_interrupted_work_goes_on(space: Workspace) -> None:
    row = stage("pretrain")
    for name, status in (("done", "FINISHED"), ("stopped", "KILLED")):
        record = space.scratch(row, name) / "record"
        record.mkdir()
        (record / "status").write_text(status)
    space.drop_finished_scratch(row)
    assert [folder.name for folder in space.scratch(row, "new").parent.iterdir() if folder.name != "pretrain-new"] == [
        "pretrain-stopped"
    ]

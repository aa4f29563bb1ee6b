"""A rung is an experiment with its own record: it is run once, and found again by a ladder that goes on."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llm_core.artifacts import new_product
from llm_core.contract import BadInput
from llm_core.scaling.devices import TABLE
from llm_core.scaling.ladder import Ladder, Rung, design
from llm_core.scaling.laws import Law, read_law
from llm_core.scaling.recipe import model_of
from tasks import experiments, ladder, planning, tracking
from tasks.display import TerminalDisplay
from tasks.session import open_session
from tasks.workspace import Workspace


@pytest.fixture
def project(root: Path, tmp_path: Path) -> Path:
    """A main workspace without products."""
    folder = tmp_path / "project"
    experiments.make_workspace(root, folder, (root / "params.yaml").read_text(), cache=folder / ".dvc" / "cache")
    return folder


def test_a_rung_is_an_experiment_that_is_run_once(workspace: Workspace) -> None:
    with open_session(workspace.root, ("tokenize",)) as session:
        for verb in ("acquire", "clean", "tokenize"):
            session.perform(verb)
        vocabulary = int(json.loads((workspace.product("shards") / "manifest.json").read_text())["facts"]["vocab_size"])
        rung = Rung(model_of(32, vocabulary, 32), steps=8, sequences=4, budget=0)
        loss = ladder.run_rung.fn(session, rung)
        space = Workspace.at(workspace.root / "runs" / f"ladder-{rung.name}")
        report = space.read_report("pretrain") or {}
        assert loss == report["metrics"]["loss"]
        assert report["metrics"]["tokens_seen"] == rung.tokens
        assert report["metrics"]["parameters"] == rung.shape.parameters()
        uri = tracking.tracking_uri(workspace.project)
        assert uri is not None
        run = tracking.ask(uri, "runs/get", run_id=report["run"]["mlflow_run_id"])
        assert run is not None
        assert {"key": "workspace", "value": space.name} in run["run"]["data"]["tags"]

        assert ladder.run_rung.fn(session, rung) == loss
        assert (space.read_report("pretrain") or {})["run"] == report["run"]  # found, not run again
        assert (workspace.read_report("pretrain") or {}).get("run") != report["run"]  # the main workspace is as it was

        with pytest.raises(BadInput, match=r"too few for a ladder|minutes on"):
            ladder.design.fn(session, workspace.product("shards"), minutes=0.001)
        with pytest.raises(BadInput, match="above 0"):
            ladder.design.fn(session, workspace.product("shards"), minutes=0)


def test_a_ladder_that_goes_on_is_the_same_ladder(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The measured speed decides how large it is, but only the first time."""
    shards = tmp_path / "shards"
    with new_product(shards, "shards") as folder:
        (folder / "train.bin").write_bytes(b"x")
    data = SimpleNamespace(vocab_size=8192, facts={"splits": {"train": {}}}, tokens=lambda split: range(50_000_000))
    monkeypatch.setattr(ladder.Shards, "open", lambda path: data)
    session: Any = SimpleNamespace(space=Workspace.at(project), display=TerminalDisplay())
    (project / ".groundup").mkdir()
    monkeypatch.setattr(ladder, "this_machine", lambda *_, **__: TABLE["cpu-8"])
    first = ladder.design.fn(session, shards, minutes=60.0)
    monkeypatch.setattr(ladder, "this_machine", lambda *_, **__: TABLE["cpu-2"])
    assert ladder.design.fn(session, shards, minutes=60.0) == first
    other = ladder.design.fn(session, shards, minutes=61.0)
    assert other.flops < first.flops


def test_what_a_ladder_teaches_is_kept_for_plans(workspace: Workspace) -> None:
    truth = Law(E=2.8, A=82, B=156, alpha=0.389, beta=0.416)
    found: Ladder = design(614_753, 2048, 128)
    losses = {r.name: truth.loss(r.shape.parameters(), r.tokens) for r in (*found.rungs, found.held_out)}
    with open_session(workspace.root, ("tokenize",)) as session:
        for verb in ("acquire", "clean", "tokenize"):
            session.perform(verb)
        study = ladder.learn.fn(session, found, losses, workspace.product("shards"))
    law, facts = read_law(workspace.root / planning.LAW)
    assert law == study.law
    assert law.name.startswith("own")
    assert len(facts["runs"]) == len(losses)
    corpus, digest = planning.corpus_of(workspace.root)
    assert corpus.tokens is not None
    assert planning.law_of(workspace.root, digest) == law
    Path(workspace.root / planning.LAW).unlink()

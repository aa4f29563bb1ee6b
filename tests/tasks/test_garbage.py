"""Garbage: real workspaces on one DVC cache and a real MLflow store; what is old goes, what anything needs stays."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from llm_core import artifacts
from llm_core.contract import BadInput
from tasks import experiments, garbage, history, params, tracking
from tasks.workspace import Workspace

DAY = 86_400


def make(space: Workspace, text: str) -> str:
    """A product `raw` that says this, committed by DVC as `groundup accept` does; its digest."""
    from dvc.repo import Repo

    shutil.rmtree(space.product("raw"), ignore_errors=True)
    with artifacts.new_product(space.product("raw"), "raw", {"sources": {}}) as folder:
        (folder / "rows.txt").write_text(text)
        (folder / "same.txt").write_text("in all of them")
    space.report("acquire").parent.mkdir(exist_ok=True)
    space.report("acquire").write_text("{}")
    with contextlib.chdir(space.root), Repo(str(space.root)) as repo:
        repo.commit("acquire", force=True)
    return artifacts.digest(space.product("raw"))


def record(client: Any, space: Workspace, product: str, digest: str, inputs: dict[str, str]) -> str:
    """A finished run as the stages leave it: what it made, what it read, the dvc.lock of its time."""
    from mlflow.entities import Dataset, DatasetInput

    verb = {"raw": "acquire", "corpus": "clean"}[product]
    full = tracking.EXPERIMENT.format(verb)
    if client.get_experiment_by_name(full) is None:
        client.create_experiment(full, artifact_location=(space.root / "mlruns").as_uri())
    run = client.create_run(client.get_experiment_by_name(full).experiment_id, tags={"product": digest}).info.run_id
    read = [DatasetInput(Dataset(name, value[:36], "local", json.dumps({"sha256": value})))
            for name, value in inputs.items()]  # fmt: skip
    client.log_inputs(run, read) if read else None
    client.log_artifact(run, str(space.root / "dvc.lock"))
    client.set_terminated(run)
    return str(run)


def age(path: Path, days: float) -> None:
    """Make everything there look so old; links are left alone."""
    then = time.time() - days * DAY
    for file in [path, *path.rglob("*")]:
        if not file.is_symlink():
            os.utime(file, (then, then))


@pytest.fixture
def main(root: Path, tmp_path: Path) -> Workspace:
    tiny = params.overlay(params.read(root / "params.yaml"), params.read(root / "presets" / "tiny.yaml"))
    folder = tmp_path / "project"
    return experiments.make_workspace(root, folder, params.dump(tiny), cache=folder / ".dvc" / "cache")


def test_what_nothing_needs_goes_and_all_else_stays(main: Workspace) -> None:
    uri = f"sqlite:///{main.root}/mlflow.db"
    client = tracking.client(uri)
    taught = make(main, "what the champion learned from")
    record(client, main, "raw", taught, {})
    champion = "c" * 64
    run = record(client, main, "corpus", champion, {"raw": taught})
    client.create_registered_model("groundup")
    tags = {"model": "chat", "digest": champion, "scores": "s" * 64}
    version = client.create_model_version("groundup", f"runs:/{run}/x", run, tags=tags)
    client.set_registered_model_alias("groundup", "champion", version.version)
    forgotten = make(main, "of an earlier attempt")
    standing = make(main, "what is checked out")
    cache = history.cache_of(main)
    names = {
        name: experiments.create(main.root, name, {"pretrain": {"steps": n}}) for n, name in ((9, "old"), (8, "new"))
    }
    theirs = {name: make(space, f"of the {name} experiment") for name, space in names.items()}
    inside = main.root / ".groundup"
    for path in (inside / "registry" / champion, inside / "registry" / "unused", inside / "scratch" / "pretrain-0"):
        path.mkdir(parents=True)
        (path / "weights").write_text("12345")
    for path in (cache, names["old"].root, inside / "scratch"):
        age(path, 30)
    young = experiments.create(main.root, "fleeting", {"pretrain": {"steps": 7}})
    recent = make(young, "made today in a workspace that is gone")
    shutil.rmtree(young.root)

    def in_cache() -> set[str]:
        found = [history.cached(cache, p.parent.name + p.name) for p in cache.glob("??/*.dir")]
        return {artifacts.sha256(files[artifacts.MANIFEST]) for files in found if files}

    everything = {taught, forgotten, standing, recent, *theirs.values()}
    assert in_cache() == everything
    told = garbage.collect(main, uri, days=14, dry_run=True)
    assert in_cache() == everything
    assert names["old"].root.is_dir()
    done = garbage.collect(main, uri, days=14, dry_run=False)
    assert done | {"dry_run": True} == told
    assert (done["experiments"], done["products"], done["downloads"], done["resume_points"]) == (["old"], 2, 1, 1)
    assert done["bytes"] > 0
    assert in_cache() == everything - {forgotten, theirs["old"]}
    assert not names["old"].root.exists()
    assert names["new"].root.is_dir()
    assert {path.name for path in (inside / "registry").iterdir()} == {champion}
    shutil.rmtree(main.product("raw"))
    subprocess.run([sys.executable, "-m", "dvc", "checkout", "-q", "acquire"], cwd=main.root, check=True)
    assert artifacts.digest(main.product("raw")) == standing
    again = garbage.collect(main, uri, days=14, dry_run=False)
    assert (again["objects"], again["experiments"], again["bytes"]) == (0, [], 0)
    assert garbage.collect(main, uri, days=0, dry_run=True)["experiments"] == ["new"]


def test_nothing_goes_while_something_works_there(main: Workspace) -> None:
    make(main, "anything")
    (main.root / ".groundup").mkdir(exist_ok=True)
    uri = f"sqlite:///{main.root}/mlflow.db"
    with FileLock(main.root / ".groundup" / "lock"), pytest.raises(BadInput, match="collect when it has ended"):
        garbage.collect(main, uri, days=0, dry_run=False)
    lock = main.root / ".dvc" / "tmp" / "rwlock"
    lock.parent.mkdir(exist_ok=True)
    lock.write_text(json.dumps({"write": {"data/raw": {"pid": os.getpid(), "cmd": "dvc repro acquire"}}, "read": {}}))
    with pytest.raises(BadInput, match="in use by `dvc repro acquire`"):
        garbage.collect(main, uri, days=0, dry_run=False)

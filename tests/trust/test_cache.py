"""DVC takes a write-protected object for whole: a damaged one must end as an error or as the right product."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks import killing
from llm_core import artifacts
from llm_core.contract import BadInput
from tasks import damage as mending
from tasks import freshness, runner
from tasks.workspace import Workspace


class Silent:
    """Shows nothing."""

    def begin(self, verb: str, why: list[str]) -> None:
        """A stage begins."""

    def event(self, verb: str, event: dict[str, Any]) -> None:
        """A stage tells something."""

    def end(self, verb: str, outcome: str, seconds: float) -> None:
        """A stage has ended."""


def dvc(space: Workspace, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "dvc", *words],
        cwd=space.root, env=killing.environment(), capture_output=True, text=True,
    )  # fmt: skip
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def stored(project: Path, whole: Any, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace up to the shards, which DVC has in its cache, and a training has not been done."""
    space = killing.workspace(project, tmp_path_factory.mktemp("stored") / "space")
    for name in ("raw", "corpus"):
        whole.copy(name, space)
    dvc(space, "commit", "--force", "acquire", "clean")
    dvc(space, "repro", "tokenize")
    return space


@pytest.fixture
def space(stored: Workspace, tmp_path: Path) -> Iterator[Workspace]:
    """A copy of it with a cache of its own."""
    root = tmp_path / "space"
    shutil.copytree(stored.root, root, symlinks=True, ignore=shutil.ignore_patterns("tmp"))
    for link in [path for path in root.iterdir() if path.is_symlink()]:
        target = (stored.root / link.name).resolve()
        link.unlink()
        link.symlink_to(target)
    with contextlib.chdir(root):
        yield Workspace.at(root)


def objects(space: Workspace, stage: str) -> dict[str, Path]:
    """The cache's objects of a stage's product by their names in it; "" is the listing."""
    outs = yaml.safe_load((space.root / "dvc.lock").read_text())["stages"][stage]["outs"]
    address = next(out["md5"] for out in outs if out["md5"].endswith(".dir"))
    cache = space.root / ".dvc" / "cache" / "files" / "md5"
    listing = cache / address[:2] / address[2:]
    entries = json.loads(listing.read_text())
    return {"": listing} | {entry["relpath"]: cache / entry["md5"][:2] / entry["md5"][2:] for entry in entries}


def perform(space: Workspace, verb: str, **how: Any) -> runner.Outcome:
    return runner.perform(space, verb, freshness.Freshness(space), Silent(), **how)


@pytest.mark.parametrize("name", ["train.bin", "manifest.json", ""], ids=["shard", "manifest", "listing"])
def test_a_damaged_object_is_not_restored(space: Workspace, whole: Any, damage: Callable[..., None], name: str) -> None:
    """`groundup run` finds it out, throws the object away and makes the product again."""
    artifacts._remove(space.product("shards"))
    damage(objects(space, "tokenize")[name])
    assert perform(space, "tokenize").state == "ran"
    artifacts.verify(space.product("shards"))
    assert artifacts.digest(space.product("shards")) == artifacts.digest(whole.product("shards"))
    assert "up to date" in dvc(space, "status", "tokenize").stdout
    dvc(space, "checkout", "--relink", "tokenize")
    artifacts.verify(space.product("shards"))


def test_a_forced_run_does_not_get_the_damaged_object_back(
    space: Workspace, whole: Any, damage: Callable[..., None]
) -> None:
    """What a cache has is never written again: DVC would lay the damaged object over the product just made."""
    for victim in (
        objects(space, "tokenize")["train.bin"],
        space.product("shards") / "train.bin",
    ):  # one file, linked
        damage(victim)
    with pytest.raises(BadInput, match="--force tokenize"):
        mending.check(space, "shards")
    assert perform(space, "tokenize", force=True).state == "ran"
    artifacts.verify(space.product("shards"))
    assert artifacts.digest(space.product("shards")) == artifacts.digest(whole.product("shards"))


def test_the_other_door_refuses_to_read_it(space: Workspace, damage: Callable[..., None]) -> None:
    """`dvc repro` restores the damaged object; the stage that would read it says so and makes nothing."""
    artifacts._remove(space.product("shards"))
    damage(objects(space, "tokenize")["train.bin"])
    done = dvc(space, "repro", "pretrain", check=False)
    assert done.returncode != 0
    assert "its bytes differ from the manifest" in done.stdout + done.stderr
    assert not space.product("base").exists()


def test_only_what_is_damaged_is_thrown_away(space: Workspace, damage: Callable[..., None]) -> None:
    from llm_core.pipeline import stage

    assert mending.drop_damaged(space, stage("tokenize")) == []
    victim = objects(space, "tokenize")["train.bin"]
    damage(victim)
    assert mending.drop_damaged(space, stage("tokenize")) == [victim]

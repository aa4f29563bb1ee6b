"""`groundup run` with a Dask cluster and an S3 store, through to a model: the bytes of a plain run on folders."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from benchmarks import killing
from llm_core import artifacts
from tasks.workspace import Workspace

MADE = {"corpus": "data/corpus", "shards": "data/shards", "base": "models/base"}
"""Their digests are compared; raw carries times."""


@pytest.mark.timeout(1200)
def test_a_run_on_a_cluster_and_a_store_whose_workers_are_killed_makes_the_same_bytes(
    workspace: Workspace, root: Path, s3, dask_elsewhere, tmp_path: Path
) -> None:
    """`workspace` is asked for because its servers serve the runs. The workers may open nothing below `here`."""
    import s3server

    (tmp_path / "project").mkdir()
    project = killing.copy_code(root, tmp_path / "project")
    plain = killing.workspace(project, tmp_path / "plain", {"clean": {"workers": 1}, "tokenize": {"workers": 1}})
    killing.groundup(plain, "run", "pretrain", "--json")
    space = killing.workspace(project, tmp_path / "here", {"storage": {"url": "s3://bucket/whole"}})
    seed = random.SystemRandom().randrange(2**32)
    s3.faults = s3server.Faults(errors=2, busy=1, slow=3, seconds=0.3)
    killing.groundup(space, "run", "acquire", "--json")
    moments = sorted(random.Random(seed).sample(range(10, 100), 3))
    s3.due = [(s3.count + moment, dask_elsewhere.replace_worker) for moment in moments]
    states = killing.groundup(space, "run", "pretrain", "--cluster", dask_elsewhere.address, "--json")["states"]
    assert len(dask_elsewhere.killed) == 3, f"seed {seed}, {s3.count} requests"
    assert {states[verb] for verb in ("clean", "tokenize", "pretrain")} == {"ran"}
    digests = [{name: artifacts.digest(one.root / path) for name, path in MADE.items()} for one in (plain, space)]
    assert digests[0] == digests[1], f"seed {seed}"
    for name in ("data/raw", "data/corpus", "data/shards"):
        assert "store.json" in {path.name for path in (space.root / name).iterdir()}, f"{name} lies in the store"
    assert s3.moved["worker"] > 0
    again = killing.groundup(space, "run", "pretrain", "--json")["states"]
    assert {again[verb] for verb in ("acquire", "clean", "tokenize", "pretrain")} == {"fresh"}, "nothing is stale"

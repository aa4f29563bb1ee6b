"""Long checks of the main job at its real size; `make soak` runs them."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from benchmarks import cycles
from llm_core import artifacts
from llm_core.pipeline import VERBS
from tasks import experiments
from tasks.runner import child_environment


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_two_builds_from_nothing_give_the_same_bytes(root: Path, tmp_path: Path) -> None:
    """Crawl, clean, tokenize and pretrain twice, each with its own crawl store and cache."""
    digests = []
    for name in ("one", "two"):
        text = (root / "params.yaml").read_text()
        space = experiments.make_workspace(root, tmp_path / name, text, cache=tmp_path / name / "cache")
        subprocess.run(
            ["dvc", "repro", "pretrain"], cwd=space.root, env=child_environment(Path(os.devnull)), check=True
        )
        digests.append({product: artifacts.digest(space.product(product)) for product in ("corpus", "shards", "base")})
    assert digests[0] == digests[1]


@pytest.mark.soak
@pytest.mark.timeout(4 * 3600)
def test_an_hour_of_refresh_build_and_vote_stays_flat(root: Path, tmp_path: Path) -> None:
    """GROUNDUP_SOAK_MINUTES says how long; memory and disk are judged by `benchmarks.cycles.growing`."""
    found = cycles.run(root, tmp_path, minutes=float(os.environ.get("GROUNDUP_SOAK_MINUTES", "60")))
    print(json.dumps(cycles.facts(found)))
    assert len(found) >= 3
    follows = set(VERBS) - {"acquire"}  # it is the refresh that makes raw anew
    assert all(follows <= set(one.states["run"]) for one in found), "a page had changed: everything follows"
    assert all("collect" in one.states["feedback"] for one in found), "votes had come"
    assert cycles.growing(found) == []

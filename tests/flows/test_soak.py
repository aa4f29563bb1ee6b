"""Long checks of the main job at its real size; `make soak` runs them."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from llm_core import artifacts
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

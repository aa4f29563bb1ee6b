"""The main job's benchmark says where it measured, and keeps what an earlier call measured. No timing is tested."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


def measure(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-m", "benchmarks.main_job", *arguments]
    return subprocess.run(program, cwd=root, capture_output=True, text=True)


def test_a_part_is_measured_and_the_others_are_kept(root: Path, tmp_path: Path) -> None:
    (tmp_path / "main_job.json").write_text(json.dumps({"noop": {"median_s": 6.5}, "help": {"median_s": 9.0}}))
    done = measure(root, "--only", "help", "--results", str(tmp_path))
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "main_job.json").read_text())
    assert found["noop"] == {"median_s": 6.5}
    assert len(found["help"]["all_s"]) == 7
    assert found["help"]["median_s"] == sorted(found["help"]["all_s"])[3]
    assert {"commit", "device", "load_average", "versions", "measured"} <= set(found["help"]["where"])


@pytest.mark.parametrize("only", ["bake", "help,bake"])
def test_an_unknown_part_is_refused_before_anything_is_measured(root: Path, tmp_path: Path, only: str) -> None:
    done = measure(root, "--only", only, "--results", str(tmp_path))
    assert done.returncode == 2
    assert "no part 'bake'; the parts are job, noop, help" in done.stderr
    assert not list(tmp_path.iterdir())

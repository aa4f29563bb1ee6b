"""The command's manners: help at once, bad input in one sentence with exit code 2, nothing started."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tasks import experiments, params


def groundup(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "flows.cli", *arguments], cwd=cwd, capture_output=True, text=True)


@pytest.fixture
def project(root: Path, tmp_path: Path) -> Path:
    text = (root / "params.yaml").read_text()
    return experiments.make_workspace(root, tmp_path / "project", text, cache=tmp_path / "cache").root


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["run", "--set", "pretrain.steps=0"], "pretrain.steps = 0: input should be greater than or equal to 1"),
        (["run", "--set", "pretrain.stps=1"], "pretrain.stps: no such parameter"),
        (["run", "--set", "steps=1"], "section.key=value"),
        (["run", "--preset", "huge"], "no preset 'huge'; the presets are"),
        (["run", "bake"], "no stage 'bake'; the stages are acquire, clean"),
        (["run", "--force", "bake"], "no stage 'bake'"),
        (["adopt", "nothing"], "no finished experiment 'nothing'"),
        (["accept", "bake"], "no stage 'bake'"),
        (["export", "out", "--format", "onnx"], "--format: 'onnx' is none of hf, gguf-ready"),
    ],
)
def test_bad_input_is_one_sentence_and_starts_nothing(project: Path, arguments: list[str], sentence: str) -> None:
    done = groundup(*arguments, cwd=project)
    assert done.returncode == 2, done.stderr
    assert sentence in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (project / ".run").exists(), "a server was started"
    assert not any((project / "data").glob("*"))


def test_a_wrong_file_names_itself(project: Path) -> None:
    (project / "params.yaml").write_text("clean:\n  workers: -1\n")
    done = groundup("run", cwd=project)
    assert done.returncode == 2
    assert "params.yaml: clean.workers = -1" in done.stderr


def test_a_missing_section_is_named(project: Path) -> None:
    text = (project / "params.yaml").read_text()
    (project / "params.yaml").write_text(text.replace("sft:", "# sft:").replace("seed: 1\n\ncollect", "\ncollect"))
    done = groundup("run", cwd=project)
    assert done.returncode == 2
    assert "section 'sft' is missing" in done.stderr


def test_outside_a_project(tmp_path: Path) -> None:
    done = groundup("status", cwd=tmp_path)
    assert done.returncode == 2
    assert "not inside a Groundup project" in done.stderr


def test_status_of_a_project_that_never_ran(project: Path) -> None:
    done = groundup("status", cwd=project)
    assert done.returncode == 0, done.stderr
    assert "never" in done.stdout
    assert "stale" in done.stdout


def test_help_imports_nothing_heavy(root: Path) -> None:
    code = "import sys, flows.cli; print([m for m in ('torch','mlflow','prefect','dvc','pyarrow') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_experiments_name_is_stable_and_telling() -> None:
    chosen = params.parse_assignments(["pretrain.learning_rate=0.1"])
    name = experiments.name_for(None, ["pretrain.learning_rate=0.1"], chosen)
    assert name == experiments.name_for(None, ["pretrain.learning_rate=0.1"], chosen)
    assert name.startswith("learning-rate-0-1-")
    assert experiments.name_for("seed", [], {}) == "seed"

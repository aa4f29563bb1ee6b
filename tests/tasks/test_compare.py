"""What differs between two runs: settings, data, code and results, from reports alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llm_core.contract import BadInput
from tasks.compare import compare


def write_report(root: Path, verb: str, **changes: Any) -> None:
    (root / "reports").mkdir(parents=True, exist_ok=True)
    for name in ("params.yaml", "dvc.yaml"):
        (root / name).touch()
    run = {"git_commit": "a" * 40, "device": "x86_64, 2 cores"} | changes.pop("run", {})
    report = {"params": {"seed": "1", "steps": "30"}, "product": "0" * 64, "metrics": {"loss": 2.0}, "run": run}
    (root / "reports" / f"{verb}.json").write_text(json.dumps(report | changes))


@pytest.fixture
def project(tmp_path: Path) -> Path:
    write_report(tmp_path, "clean")
    write_report(tmp_path, "pretrain")
    other = tmp_path / "runs" / "faster"
    write_report(other, "clean")
    write_report(other, "pretrain", params={"seed": "1", "steps": "60"}, product="1" * 64, metrics={"loss": 1.5},
                 run={"git_commit": "b" * 40})  # fmt: skip
    return tmp_path


def test_it_tells_settings_data_code_and_results(project: Path) -> None:
    found = compare(project, "main", "faster")
    assert found.params == [("pretrain.steps", "30", "60")]
    assert found.data == [("pretrain", "0" * 16, "1" * 16)]
    assert found.code == [("pretrain commit", "a" * 12, "b" * 12)]
    assert ("pretrain loss", "2", "1.5", "-0.5") in found.results


def test_equal_runs_differ_in_nothing(project: Path) -> None:
    found = compare(project, "main", "main")
    assert (found.params, found.data, found.code) == ([], [], [])
    assert found.markdown().count("No difference.") == 3


def test_a_stage_that_ran_in_one_alone_stands_under_data(project: Path) -> None:
    (project / "runs" / "faster" / "reports" / "pretrain.json").unlink()
    found = compare(project, "main", "faster")
    assert found.params == []
    assert found.data == [("pretrain", "0" * 16, "")]
    assert ("pretrain loss", "2", "", "") in found.results


def test_markdown_escapes_what_would_break_a_table(project: Path) -> None:
    write_report(project / "runs" / "faster", "clean", params={"pattern": "a|b"})
    assert "| clean.pattern |  | a\\|b |" in compare(project, "main", "faster").markdown()


def test_unknown_runs_are_named(project: Path) -> None:
    with pytest.raises(BadInput, match="no experiment 'slower'; there are main, faster"):
        compare(project, "main", "slower")
    (project / "runs" / "empty").mkdir()
    (project / "runs" / "empty" / "params.yaml").touch()
    (project / "runs" / "empty" / "dvc.yaml").touch()
    with pytest.raises(BadInput, match="empty has no reports yet"):
        compare(project, "empty", "main")

"""Wrong settings are refused in one sentence that names file, field, value and bound."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from llm_core.contract import BadInput
from tasks import params


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"pretrain": {"steps": 0}}, "params.yaml: pretrain.steps = 0: input should be greater than or equal to 1"),
        ({"pretrain": {"stpes": 10}}, "params.yaml: pretrain.stpes: no such parameter (value 10)"),
        ({"pretain": {}}, "params.yaml: unknown section 'pretain'; the sections are acquire, clean"),
        ({"clean": {"validation_share": "much"}}, "params.yaml: clean.validation_share = 'much': input should be a"),
        ({"acquire": {"sources": []}}, "params.yaml: acquire.sources = []: tuple should have at least 1 item"),
        ({"promote": {"require": "best"}}, "params.yaml: promote.require = 'best': input should be 'better' or"),
    ],
)
def test_one_sentence(given: dict[str, object], sentence: str) -> None:
    with pytest.raises(BadInput) as caught:
        params.check(given, "params.yaml")
    assert str(caught.value).startswith(sentence)
    assert "\n" not in str(caught.value)


def test_more_problems_are_counted() -> None:
    with pytest.raises(BadInput, match=r"\(and 1 more\)"):
        params.check({"pretrain": {"steps": 0, "clip": -1}}, "params.yaml")


def test_overlay_merges_sections_and_replaces_lists() -> None:
    base = {"a": {"x": 1, "y": [1, 2]}, "b": 3}
    assert params.overlay(base, {"a": {"y": [9]}, "c": 4}) == {"a": {"x": 1, "y": [9]}, "b": 3, "c": 4}
    assert base == {"a": {"x": 1, "y": [1, 2]}, "b": 3}


def test_assignments_are_yaml() -> None:
    given = params.parse_assignments(["pretrain.steps=5", "pretrain.model.layers=2", "evaluate.seed= 7"])
    assert given == {"pretrain": {"steps": 5, "model": {"layers": 2}}, "evaluate": {"seed": 7}}


@pytest.mark.parametrize("text", ["steps=5", "pretrain.steps", "pretrain..x=1", "=3"])
def test_a_malformed_assignment_is_shown_how(text: str) -> None:
    with pytest.raises(BadInput, match=r"section\.key=value"):
        params.parse_assignments([text])


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", "just words"])
def test_a_file_that_is_no_mapping(tmp_path: Path, text: str) -> None:
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(BadInput, match=r"params\.yaml"):
        params.read(tmp_path / "params.yaml")


def test_every_shipped_file_of_settings_is_valid(root: Path) -> None:
    main = params.read(root / "params.yaml")
    params.check(main, "params.yaml")
    presets = sorted((root / "presets").glob("*.yaml"))
    assert {path.stem for path in presets} >= {"tiny", "seed", "showcase"}
    for path in presets:
        params.check(params.overlay(main, params.read(path)), path.name)


def test_params_yaml_names_every_section(root: Path) -> None:
    """DVC reads only the file: a section that is not there cannot be watched."""
    assert set(yaml.safe_load((root / "params.yaml").read_text())) == set(params.SECTIONS)

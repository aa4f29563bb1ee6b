"""The form of Prefect's page says what the settings say, and what comes back from it means the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flows.build import build
from tasks import experiments, params
from tasks.params import SECTIONS


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    found: dict[str, Any] = build.parameters.model_dump()
    return found


def test_every_section_and_field_stands_in_the_form(schema: dict[str, Any]) -> None:
    sections = schema["definitions"]["Settings"]["properties"]
    assert set(sections) == set(SECTIONS)
    for section, config in SECTIONS.items():
        form = schema["definitions"][section.title()]
        assert set(form["properties"]) == set(config.model_fields), section
        assert all("Blank" in about.get("description", "") or "$ref" in about or "allOf" in about
                   for about in form["properties"].values()), section  # fmt: skip


def test_bounds_and_choices_are_the_settings_own(schema: dict[str, Any]) -> None:
    pretrain = schema["definitions"]["Pretrain"]["properties"]
    assert pretrain["steps"]["minimum"] == 1
    assert pretrain["steps"]["type"] == "integer"
    assert schema["definitions"]["PretrainModel"]["properties"]["preset"]["enum"][0] == "seed"
    assert "tiny" in schema["properties"]["preset"]["enum"]


def test_every_bound_can_be_read(schema: dict[str, Any]) -> None:
    """The page checks bounds without showing them, so each stands in the field's text."""
    checked = 0
    for name, form in schema["definitions"].items():
        for key, about in form["properties"].items():
            for bound in (about[kind] for kind in ("minimum", "maximum") if kind in about):
                text = about["description"].replace(",", "")
                assert f"{bound:g}" in text or str(bound) in text, f"{name}.{key}: {bound} is not in {text!r}"
                checked += 1
    assert checked > 100
    assert "Range: above 0, up to 10." in schema["definitions"]["Align"]["properties"]["beta"]["description"]


def test_nothing_must_be_filled_in(schema: dict[str, Any]) -> None:
    assert not schema.get("required")
    assert not any(form.get("required") for form in schema["definitions"].values())


def test_filled_fields_become_overrides_and_blank_ones_say_nothing() -> None:
    form = {"pretrain": {"steps": 60, "model": {"width": None, "preset": "llama"}}, "sft": None, "clean": {}}
    told = list(params.assignments(form))
    assert told == ["pretrain.steps=60", 'pretrain.model.preset="llama"']
    assert params.parse_assignments(told) == {"pretrain": {"steps": 60, "model": {"preset": "llama"}}}


def test_small_numbers_stay_numbers(root: Path, tmp_path: Path) -> None:
    """YAML takes 1e-05 for a text, so what the form holds must not pass through one."""
    project = experiments.make_workspace(root, tmp_path / "p", (root / "params.yaml").read_text(), tmp_path / "c").root
    space = experiments.beside(project, None, {"pretrain": {"optimizer": {"learning_rate": 1e-5, "name": None}}})
    assert space.params["pretrain"]["optimizer"] == {"learning_rate": 1e-5}


def test_lists_and_texts_survive_the_way_through_assignments() -> None:
    form = {"acquire": {"sources": [{"kind": "files", "name": "n", "paths": ["a: b", "#c"]}]}}
    assert params.parse_assignments(params.assignments(form)) == form

"""benchmarks/feedback.py: which settings each method runs with, what is remembered, and what counts as kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import feedback
from benchmarks.feedback import METHODS, compare, settings_of
from benchmarks.judging import Products
from llm_core.artifacts import new_product
from llm_core.settings.align import AlignConfig

PROMPTS = [f"p{i}" for i in range(40)]


def figures(right: float, greedy: float, tokens: float = 4.0, bits: float = 2.0) -> dict[str, object]:
    """A model's figures, the same share right on every prompt but for every fourth, which differs a little."""
    sampled = {prompt: right + (0.1 if i % 4 == 0 else 0.0) for i, prompt in enumerate(PROMPTS)}
    return {
        "sampled": sampled, "greedy": dict.fromkeys(PROMPTS, greedy), "pass_at_8": sampled,
        "lengths": dict.fromkeys(PROMPTS, tokens), "mean_length": tokens, "ended": 1.0, "bits_per_byte": bits,
        "kl_from_chat": 0.1, "reward": right, "samples": [],
    }  # fmt: skip


def test_a_method_is_laid_over_the_settings_of_the_workspace(tmp_path: Path) -> None:
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    (tmp_path / "params.yaml").write_text("align: {steps: 7, online: {prompts: 3, kl_weight: 0.3, rollouts: 5}}\n")
    made = {name: AlignConfig.model_validate(found) for name, found in settings_of(tmp_path, [*METHODS]).items()}
    assert [made[name].method for name in METHODS] == ["dpo", "grpo", "grpo"]
    assert all(config.steps == 7 and config.online.prompts == 3 for config in made.values())
    assert [made[name].online.reward for name in METHODS] == ["model", "model", "checked"]
    assert [made[name].online.kl_weight for name in METHODS] == [0.3, 0.3, 0.02]


@pytest.mark.parametrize(
    ("aligned", "missed"),
    [
        (figures(0.6, 0.7), set()),
        (figures(0.55, 0.7), {"sampled_at_least_0.06"}),
        (figures(0.5, 0.7), {"sampled_at_least_0.06", "sampled_interval_above_0"}),
        (figures(0.6, 0.5), {"greedy_not_lower"}),
        (figures(0.6, 0.7, tokens=5.2), {"length"}),
        (figures(0.6, 0.7, bits=2.3), {"bits_per_byte"}),
    ],
)
def test_what_was_asked_for_is_told_apart(aligned: dict[str, object], missed: set[str]) -> None:
    row = compare(aligned, figures(0.5, 0.6))
    assert {name for name, kept in row["kept"].items() if not kept} == missed
    assert row["gains"]["sampled"]["from"] == pytest.approx(0.525)


def test_a_model_is_remembered_for_its_settings_and_its_products_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [tmp_path / name for name in ("chat", "reward", "votes", "corpus", "shards")]
    for path in paths:
        with new_product(path, path.name):
            pass
    made: list[AlignConfig] = []

    def align(config: AlignConfig, *, out: Path, **_: object) -> None:
        made.append(config)
        with new_product(out, "aligned"):
            pass

    monkeypatch.setattr(feedback, "align", align)
    products = Products(*paths)
    work = products.work(tmp_path / "work", 800)
    places = [feedback.tune(products, "dpo", 0, work, {"steps": steps})[0] for steps in (5, 5, 6)]
    assert [config.steps for config in made] == [5, 6]
    assert places[0] == places[1] != places[2]
    assert products.work(tmp_path / "work", 801) != work == Products(*paths).work(tmp_path / "work", 800)
    with new_product(tmp_path / "other", "chat", {"other": True}):
        pass
    assert Products(tmp_path / "other", *paths[1:]).work(tmp_path / "work", 800) != work

"""Plans keep their budget, follow the law, stay within memory and corpus, and become settings that are accepted."""

from __future__ import annotations

import math

import pytest

from llm_core.contract import BadInput
from llm_core.scaling import devices, recipe
from llm_core.scaling.devices import GIB, TABLE, Device, Speed
from llm_core.scaling.laws import EPOCH, Law
from llm_core.scaling.planner import Budget, Corpus, law_rows, make_plan, overrides, plan_rows
from llm_core.settings.pretrain import PretrainConfig
from llm_core.settings.tokenize import TokenizeConfig

OWN = Law(E=2.8, A=82, B=156, alpha=0.389, beta=0.416, name="own ladder", source="16 runs")


@pytest.mark.parametrize("name", sorted(TABLE))
def test_hours_are_kept_on_every_device(name: str) -> None:
    plan = make_plan(Budget(hours=5), TABLE[name])
    assert plan.seconds == pytest.approx(5 * 3600, rel=0.02)
    assert plan.memory <= 0.9 * plan.device.memory
    assert plan.tokens == plan.steps * plan.batch_sequences * plan.shape.context
    assert 1 <= plan.passes <= plan.batch_sequences


def test_the_share_of_peak_goes_through_the_published_runs() -> None:
    """H100: llm.c's 40% at 124M, nanochat's 50% at width 1536. H200: modded-nanogpt's 42%. A100: llm.c's 60%."""
    for name, width, share in (("H100", 768, 0.40), ("H100", 1536, 0.50), ("H200", 768, 0.42), ("A100", 768, 0.60)):
        shape = recipe.model_of(width, 50257, 1024)
        assert TABLE[name].flops_per_second(shape) / TABLE[name].peak == pytest.approx(share, abs=0.01)


def test_flops_are_kept_and_no_other_size_is_better() -> None:
    plan = make_plan(Budget(flops=1e19), TABLE["H100"])
    assert plan.flops == pytest.approx(1e19, rel=0.01)
    shape = plan.shape
    for other in recipe.family(None, shape.context):
        tokens = 1e19 / other.flops_per_token()
        assert EPOCH.loss(other.parameters(), tokens) * 1.0021 >= plan.loss
    best, _ = EPOCH.optimum(1e19)
    assert plan.shape.parameters() == pytest.approx(best, rel=0.5)


def test_tokens_are_kept_and_the_size_is_the_one_they_are_best_for() -> None:
    plan = make_plan(Budget(tokens=2e10), TABLE["H100"])
    assert plan.tokens == pytest.approx(2e10, rel=0.01)
    assert plan.shape.parameters() == pytest.approx(EPOCH.best_size(2e10), rel=0.15)


def test_more_budget_is_never_worse() -> None:
    losses = [make_plan(Budget(hours=hours), TABLE["4090"]).loss for hours in (0.5, 1, 4, 16, 64)]
    assert losses == sorted(losses, reverse=True)
    assert losses[0] > losses[-1]


def test_a_small_corpus_caps_the_plan_and_says_so() -> None:
    corpus = Corpus(600_000, 2048, "shards")
    plan = make_plan(Budget(hours=24), TABLE["cpu-8"], corpus, law=OWN)
    assert plan.epochs == pytest.approx(4.0, rel=0.02)
    assert plan.seconds < 24 * 3600
    assert plan.loss == pytest.approx(OWN.loss(plan.shape.parameters(), plan.tokens, 600_000))
    assert any("corpus is the limit" in note and "600,000" in note for note in plan.notes)
    assert not any("another corpus" in note for note in plan.notes)
    fresh = make_plan(Budget(hours=24), TABLE["cpu-8"], law=OWN)
    assert fresh.loss < plan.loss


def test_without_a_law_of_ones_own_the_plan_warns() -> None:
    plan = make_plan(Budget(hours=0.1), TABLE["cpu-2"], Corpus(600_000, 2048, "shards"))
    assert plan.loss <= math.log(2048)
    assert any("another corpus" in note for note in plan.notes)
    assert any("extrapolated" in note for note in plan.notes)


def test_memory_limits_the_size() -> None:
    small = Device("small", 1e15, 1 * GIB, 0.5, 512, "made up")
    plan = make_plan(Budget(hours=100), small)
    assert plan.memory <= 0.9 * GIB
    assert any("largest model of the family" in note for note in plan.notes)
    with pytest.raises(BadInput, match="memory of tiny"):
        make_plan(Budget(hours=1), Device("tiny", 1e12, 1 << 20, 0.5, 10, "made up"))


def test_a_budget_too_small_for_anything_is_refused() -> None:
    with pytest.raises(BadInput, match="too little"):
        make_plan(Budget(flops=1e6), TABLE["cpu-2"])


@pytest.mark.parametrize("budget", [{}, {"hours": 1, "flops": 1e12}, {"hours": 0}, {"tokens": -5}, {"flops": math.inf}])
def test_a_budget_is_one_number_above_zero(budget: dict[str, float]) -> None:
    with pytest.raises(BadInput):
        Budget(**budget)


@pytest.mark.parametrize(
    ("budget", "name", "corpus"),
    [
        (Budget(hours=0.05), "cpu-2", Corpus(600_000, 2048, "shards")),
        (Budget(hours=24), "cpu-32", None),
        (Budget(tokens=1e10), "A100", None),
        (Budget(flops=1e21), "H200", None),
    ],
)
def test_overrides_are_accepted_as_settings_and_make_the_planned_model(
    budget: Budget, name: str, corpus: Corpus | None
) -> None:
    plan = make_plan(budget, TABLE[name], corpus, law=OWN if corpus else EPOCH)
    sections = overrides(plan)
    config = PretrainConfig.model_validate(sections["pretrain"])
    shape = config.model.build(plan.shape.vocab_size)
    assert shape == plan.shape
    assert config.steps * config.batch_sequences * shape.context == plan.tokens
    law = config.law.build()
    assert (law.name, law.E, law.beta) == (plan.law.name, plan.law.E, plan.law.beta)
    if corpus:
        assert "tokenize" not in sections
    else:
        assert TokenizeConfig.model_validate(sections["tokenize"]).vocab_size == plan.shape.vocab_size


def test_every_figure_of_a_plan_has_its_source() -> None:
    plan = make_plan(Budget(hours=10), TABLE["H100"])
    rows = {row["what"]: row for row in plan_rows(plan)}
    assert {"model", "tokens", "batch", "learning rate", "time", "memory", "expected loss"} <= set(rows)
    assert all(row["source"] for row in rows.values())
    assert f"{plan.shape.parameters():,}" in rows["model"]["value"]
    laws = law_rows(plan)
    assert [row["law"] for row in laws] == [EPOCH.name, "Hoffmann et al. 2022", "Kaplan et al. 2020"]
    assert all("arXiv" in row["source"] for row in laws)
    assert len(law_rows(make_plan(Budget(hours=1), TABLE["cpu-2"], law=OWN))) == 4


def test_a_measured_device_is_interpolated_between_its_sizes() -> None:
    shapes = [recipe.model_of(width, 2048, 128) for width in (32, 64, 128)]
    speeds = tuple(Speed(s.flops_per_token(), speed) for s, speed in zip(shapes[::2], (40_000.0, 8_000.0), strict=True))
    machine = Device("here", 1e12, GIB, 1, 0, "measured", speeds, cores=2)
    assert machine.tokens_per_second(shapes[0]) == pytest.approx(40_000)
    assert machine.tokens_per_second(shapes[2]) == pytest.approx(8_000)
    assert 8_000 < machine.tokens_per_second(shapes[1]) < 40_000
    larger = recipe.model_of(512, 2048, 128)
    assert machine.flops_per_second(larger) == pytest.approx(machine.flops_per_second(shapes[2]))


def test_devices_are_found_by_name_and_by_a_drivers_name() -> None:
    assert devices.device("h100") is TABLE["H100"]
    assert devices.recognised("NVIDIA H100 80GB HBM3") is TABLE["H100"]
    assert devices.recognised("NVIDIA GeForce RTX 4090") is TABLE["4090"]
    assert devices.recognised("NVIDIA A100-SXM4-80GB") is TABLE["A100"]
    assert devices.recognised("NVIDIA T400") is None
    with pytest.raises(BadInput, match="--device toaster: is none of H100"):
        devices.device("toaster")


def test_the_family_is_sound() -> None:
    shapes = list(recipe.family(None, 128))
    assert [s.parameters() for s in shapes] == sorted({s.parameters() for s in shapes})
    assert (recipe.depth_for(128), recipe.depth_for(768), recipe.depth_for(2048)) == (4, 12, 22)
    assert all(s.head_size % 2 == 0 for s in shapes)
    assert recipe.vocabulary_for(4096) in (1 << 15, 1 << 16)
    body = recipe.body_parameters(recipe.model_of(768, 50257, 1024))
    assert body == pytest.approx(85e6, rel=0.02)  # GPT-2 small without its embeddings


def test_step_law_gives_what_its_authors_measured() -> None:
    """Lingle's replication found 0.00195 best for 46 million parameters and 128 million tokens, at 32,768 to a step."""
    shape = next(s for s in recipe.family(None, 512) if recipe.body_parameters(s) > 46e6)
    assert recipe.learning_rate(shape, 128e6) == pytest.approx(0.00195, rel=0.25)
    assert recipe.batch_tokens(128e6) == pytest.approx(32768, rel=0.4)
    assert recipe.learning_rate(recipe.model_of(16, 512, 64), 1e6) == recipe.MOST_RATE

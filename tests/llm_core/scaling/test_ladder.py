"""A ladder stays within one pass, its budgets are equal, and what it learns foretells the held-out run."""

from __future__ import annotations

import pytest

from llm_core.contract import BadInput
from llm_core.scaling.devices import TABLE
from llm_core.scaling.ladder import Ladder, design, learn, within
from llm_core.scaling.laws import Law
from llm_core.settings.pretrain import PretrainConfig

TRUTH = Law(E=2.8, A=82, B=156, alpha=0.389, beta=0.416)


def losses_of(ladder: Ladder, law: Law = TRUTH) -> dict[str, float]:
    return {r.name: law.loss(r.shape.parameters(), r.tokens) for r in (*ladder.rungs, ladder.held_out)}


@pytest.mark.parametrize(("tokens", "vocabulary"), [(300_000, 1024), (614_753, 2048), (50_000_000, 8192)])
def test_a_ladder_is_isoflop_within_one_pass_and_holds_one_run_out(tokens: int, vocabulary: int) -> None:
    ladder = design(tokens, vocabulary, 128)
    assert len(ladder.rungs) >= 8
    assert all(rung.tokens <= tokens and rung.steps >= 40 for rung in (*ladder.rungs, ladder.held_out))
    assert len({rung.name for rung in (*ladder.rungs, ladder.held_out)}) == len(ladder.rungs) + 1
    by_budget: dict[int, list[float]] = {}
    for rung in ladder.rungs:
        by_budget.setdefault(rung.budget, []).append(rung.flops)
    assert len(by_budget) >= 3
    assert sum(len(flops) >= 3 for flops in by_budget.values()) >= 3
    assert all(max(flops) / min(flops) < 1.05 for flops in by_budget.values())
    largest = max(rung.flops for rung in ladder.rungs)
    assert ladder.held_out.flops / largest == pytest.approx(4.0, rel=0.03)


def test_a_ladder_is_cut_to_the_time_there_is() -> None:
    whole = design(50_000_000, 8192, 128)
    cut = within(50_000_000, 8192, 128, TABLE["cpu-8"], 3600)
    assert cut.seconds(TABLE["cpu-8"]) <= 3600 < whole.seconds(TABLE["cpu-8"])
    assert len(cut.rungs) >= 8
    with pytest.raises(BadInput, match="minutes on cpu-2 are too few"):
        within(614_753, 2048, 128, TABLE["cpu-2"], 1)


def test_a_corpus_too_small_is_refused() -> None:
    with pytest.raises(BadInput, match="20,000 training tokens are too few"):
        design(20_000, 512, 64)


def test_rungs_are_settings_of_pretrain() -> None:
    ladder = design(614_753, 2048, 128)
    for rung in (*ladder.rungs, ladder.held_out):
        config = PretrainConfig.model_validate(rung.settings(passes=2)["pretrain"])
        assert config.model.build(2048) == rung.shape
        assert config.steps * config.batch_sequences * rung.shape.context == rung.tokens


def test_the_held_out_run_is_foretold_from_the_others_alone() -> None:
    ladder = design(614_753, 2048, 128)
    losses = losses_of(ladder)
    study = learn(ladder, losses, bootstrap=10)
    assert study.predicted == pytest.approx(study.actual, rel=1e-4)
    assert study.fit.law.alpha == pytest.approx(TRUTH.alpha, rel=0.01)
    spoiled = learn(ladder, losses | {ladder.held_out.name: 2 * study.actual}, bootstrap=0)
    assert spoiled.predicted == study.predicted  # the run to foretell is not fitted on
    assert spoiled.error == pytest.approx(-0.5, abs=1e-3)
    rows = study.rows()
    assert [row["what"] for row in rows][-1] == "held out"
    assert len(rows) == len(ladder.rungs) + 1
    assert study.facts()["held_out"]["error"] == study.error


def test_a_missing_run_is_named() -> None:
    ladder = design(614_753, 2048, 128)
    losses = losses_of(ladder)
    del losses[ladder.rungs[3].name]
    with pytest.raises(BadInput, match=ladder.rungs[3].name):
        learn(ladder, losses)

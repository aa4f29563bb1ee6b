"""Published laws give the figures that their papers print; repeats are worth what Muennighoff et al. say."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from llm_core.contract import BadInput
from llm_core.scaling.laws import EPOCH, HOFFMANN, KAPLAN, PF_DAY, Law, effective_tokens, read_law, write_law


@pytest.mark.parametrize(
    ("flops", "parameters", "tokens"),
    [(2.21e19, 400e6, 9.2e9), (1.62e20, 1e9, 27.1e9), (2.46e22, 10e9, 410.1e9), (1.71e24, 67e9, 4.1e12)],
)
def test_hoffmanns_law_gives_the_table_of_its_approach_3(flops: float, parameters: float, tokens: float) -> None:
    found = HOFFMANN.optimum(flops)
    assert found == pytest.approx((parameters, tokens), rel=0.05)


def test_the_refit_says_what_its_authors_say() -> None:
    """About 20 tokens a parameter for Chinchilla's compute, and a = 0.51; Hoffmann's approach 3 as printed: 0.46."""
    parameters, tokens = EPOCH.optimum(5.76e23)
    assert parameters == pytest.approx(70e9, rel=0.05)
    assert 15 < tokens / parameters < 25
    assert EPOCH.exponents == pytest.approx((0.513, 0.487), abs=0.001)
    assert HOFFMANN.exponents == pytest.approx((0.454, 0.543), abs=0.005)


def test_kaplans_law_meets_its_limits() -> None:
    """With data without end it is the power law of size alone, (Nc / N)^0.076, and the other way about."""
    assert KAPLAN.loss(1e9, 1e30) == pytest.approx((6.4e13 / 1e9) ** 0.076)
    assert KAPLAN.loss(1e30, 1e9) == pytest.approx((1.8e13 / 1e9) ** 0.103)
    assert KAPLAN.optimum(PF_DAY)[0] == pytest.approx(1.3e9)
    small, large = KAPLAN.optimum(PF_DAY)[0], KAPLAN.optimum(100 * PF_DAY)[0]
    assert math.log(large / small) / math.log(100) == pytest.approx(0.73)


@pytest.mark.parametrize("law", [EPOCH, HOFFMANN, Law(E=0.5, A=30, B=5000, alpha=0.2, beta=0.6)])
@pytest.mark.parametrize("flops", [1e12, 1e18, 1e24])
def test_the_optimum_is_the_lowest_loss_at_that_compute(law: Law, flops: float) -> None:
    parameters, tokens = law.optimum(flops)
    assert 6 * parameters * tokens == pytest.approx(flops)
    best = law.loss(parameters, tokens)
    assert all(law.loss(parameters * f, tokens / f) > best for f in (0.5, 0.9, 1.1, 2.0))
    assert law.best_size(tokens) == pytest.approx(parameters)


def test_repeats_are_worth_less_and_less() -> None:
    assert effective_tokens(80, 100) == 80
    four, sixteen, endless = (effective_tokens(100 * epochs, 100) / 100 for epochs in (4, 16, 10_000))
    assert 3.6 < four < 4.0  # up to four epochs nearly as good as new
    assert 9 < sixteen < 16  # the half-worth lies about there
    assert endless == pytest.approx(1 + 15.387756)
    fresh, repeated = EPOCH.loss(1e8, 4e9), EPOCH.loss(1e8, 4e9, unique=1e9)
    assert fresh < repeated < EPOCH.loss(1e8, 1e9)


def test_parameters_beyond_what_the_data_feeds_are_worth_less() -> None:
    enough = EPOCH.best_size(1e9)
    assert EPOCH.effective_parameters(enough / 2, 1e9) == enough / 2
    assert enough < EPOCH.effective_parameters(100 * enough, 1e9) < enough * 6.4


def test_no_loss_above_that_of_guessing_is_expected() -> None:
    assert EPOCH.loss(1e5, 1e5) > math.log(2048)
    assert EPOCH.expected(1e5, 1e5, None, 2048) == math.log(2048)
    assert EPOCH.expected(1e9, 1e11, None, 2048) == EPOCH.loss(1e9, 1e11)


@pytest.mark.parametrize("change", [{"A": 0.0}, {"alpha": -0.1}, {"B": float("nan")}, {"E": -1.0}])
def test_a_law_that_does_not_fall_is_refused(change: dict[str, float]) -> None:
    with pytest.raises(BadInput, match=next(iter(change))):
        Law(**({"E": 1.0, "A": 1.0, "B": 1.0, "alpha": 0.3, "beta": 0.3} | change))


def test_a_kept_law_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "scaling" / "law.json"
    write_law(path, EPOCH, {"shards": "abc"})
    assert read_law(path) == (EPOCH, {"shards": "abc"})
    first = path.read_bytes()
    write_law(path, EPOCH, {"shards": "abc"})
    assert path.read_bytes() == first


@pytest.mark.parametrize(
    "text", ["", "[]", '{"law": {}}', '{"law": {"E": 1, "A": 2, "B": 3, "alpha": 1}, "facts": {}}']
)
def test_a_broken_law_is_one_sentence_with_the_files_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "law.json"
    path.write_text(text)
    with pytest.raises(BadInput, match=r"law\.json"):
        read_law(path)

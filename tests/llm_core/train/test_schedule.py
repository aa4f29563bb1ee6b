"""The schedules' shapes."""

from __future__ import annotations

import pytest

from llm_core.contract import BadInput
from llm_core.train.schedule import cosine, make_schedule, warmup_stable_decay


def test_wsd_rises_stays_and_falls() -> None:
    factor = warmup_stable_decay(100, warmup=0.1, decay=0.4, floor=0.05)
    assert [factor(step) for step in (0, 4, 9)] == pytest.approx([0.1, 0.5, 1.0])
    assert {factor(step) for step in range(10, 61)} == {1.0}
    assert factor(80) == pytest.approx(0.525)
    assert factor(100) == pytest.approx(0.05)


def test_cosine_rises_and_falls_to_the_floor() -> None:
    factor = cosine(100, warmup=0.02, floor=0.1)
    assert [factor(0), factor(1), factor(2)] == pytest.approx([0.5, 1.0, 1.0])
    assert factor(51) == pytest.approx(0.55)
    assert factor(100) == pytest.approx(0.1)
    values = [factor(step) for step in range(2, 101)]
    assert values == sorted(values, reverse=True)


def test_no_warmup_and_one_step() -> None:
    assert make_schedule("wsd", 1, 0.0, 0.0, 0.0)(0) == 1.0
    assert make_schedule("cosine", 1, 0.0, 0.6, 0.0)(0) == 1.0


def test_an_unknown_schedule_is_named() -> None:
    with pytest.raises(BadInput, match="'linear'"):
        make_schedule("linear", 10, 0.1, 0.1, 0.1)

"""A prediction says by which law, is cut at guessing, and stands beside what came."""

from __future__ import annotations

import math

import pytest

from llm_core.scaling.laws import EPOCH, Law
from llm_core.scaling.prediction import distinct_tokens, predict
from llm_core.scaling.recipe import model_of


def test_a_published_law_far_from_its_data_is_cut_at_guessing_and_says_so() -> None:
    found = predict(model_of(128, 2048, 128), 1_800_000, 600_000, EPOCH, 170.0)
    assert found.loss == math.log(2048)
    assert "another corpus" in found.remark
    assert "guessing" in found.sentence()
    assert found.metrics() == {"predicted_loss": found.loss, "predicted_seconds": 170.0}


def test_an_own_law_counts_repeats() -> None:
    law = Law(E=2.8, A=82, B=156, alpha=0.389, beta=0.416, name="own ladder")
    shape = model_of(128, 2048, 128)
    once, thrice = predict(shape, 600_000, 600_000, law, 1.0), predict(shape, 1_800_000, 600_000, law, 1.0)
    assert once.loss == pytest.approx(law.loss(shape.parameters(), 600_000))
    assert law.loss(shape.parameters(), 1_800_000) < thrice.loss < once.loss
    assert thrice.remark == "fitted on runs on this corpus"


def test_what_a_source_repeats_by_its_weight_is_counted_once() -> None:
    mixture = {"a": {"tokens": 100, "stream_tokens": 250}, "b": {"tokens": 80, "stream_tokens": 40}}
    assert distinct_tokens({"splits": {"train": {"mixture": mixture}}}, 290) == 140
    assert distinct_tokens({"splits": {"train": {}}}, 290) == 290


def test_the_table_puts_actual_beside_predicted() -> None:
    found = predict(model_of(768, 32768, 1024), 10**10, 10**10, EPOCH, 100.0)
    rows = found.table(3.5, 120.0)
    assert [(row["predicted"], row["actual"]) for row in rows] == [(found.loss, 3.5), (100.0, 120.0)]
    assert found.table(None, 120.0)[0]["actual"] is None

"""Who agrees with whom, and what bends votes; on made-up votes and on a published comparison by people."""

from __future__ import annotations

from typing import Any

import pytest

from llm_core.feedback.quality import Limits, agreement, bias, sift, warnings
from llm_core.feedback.raters import PersonVote


def vote(number: int, preference: str = "a", **changes: Any) -> PersonVote:
    prompt = [{"role": "user", "content": f"question {number}"}]
    found = {"id": f"t{number}", "prompt": prompt, "answer_a": "yes", "answer_b": "no", "rater": "r1"}
    return PersonVote.model_validate(found | {"preference": preference} | changes)


def test_raters_agree_on_answers_not_on_sides() -> None:
    mirrored = {"answer_a": "no", "answer_b": "yes", "rater": "r2"}
    assert agreement([vote(1), vote(1, "b", **mirrored)]) == (1.0, 1)
    assert agreement([vote(1), vote(1, "a", **mirrored)]) == (0.0, 1)
    assert agreement([vote(1), vote(1, "tie", rater="r2")]) == (0.0, 1)
    assert agreement([vote(1), vote(1, "tie", rater="r2")], clear_only=True)[1] == 0
    assert agreement([vote(1), vote(2, rater="r2"), vote(1)])[1] == 0  # other questions, or oneself


def test_the_majority_stands_against_a_slip_and_a_draw_says_nothing() -> None:
    three = [vote(1), vote(1, rater="r2"), vote(1, "b", rater="r3")]
    sifted = sift(three, Limits())
    assert [v.rater for v in sifted.kept] == ["r1", "r2"]
    assert sifted.refused == {"contradicted": 1}
    assert sift(three[1:], Limits()).kept == []
    ties = [vote(1), vote(1, "b", rater="r2"), vote(1, "tie", rater="r3"), vote(1, "both_bad", rater="r4")]
    assert [v.preference for v in sift(ties, Limits()).kept] == ["tie", "both_bad"]


def test_a_rater_of_one_side_is_left_out_wholly() -> None:
    left = [vote(i, rater="left") for i in range(20)] + [vote(40, "tie", rater="left")]
    both = [vote(i + 50, "ab"[i % 7 == 0], rater="both") for i in range(20)]
    sifted = sift(left + both, Limits(one_sided=20))
    assert sifted.one_sided == ["left"]
    assert sifted.refused == {"one_sided_rater": 21}
    assert len(sifted.kept) == 20
    assert sift(left + both, Limits(one_sided=21)).one_sided == []


def test_haste_counts_only_where_it_was_measured() -> None:
    sifted = sift([vote(1, seconds=0.4), vote(2, seconds=1.0), vote(3)], Limits(seconds=1.0))
    assert sifted.refused == {"too_fast": 1}
    assert len(sift([vote(1, seconds=0.0)], Limits(seconds=0)).kept) == 1


def test_lean_to_side_and_length() -> None:
    figures = bias([("a", 9, 3), ("a", 3, 9), ("b", 3, 9), ("tie", 1, 9), ("a", 4, 4)])
    assert figures == pytest.approx(
        {"side_a_share": 0.75, "longer_preferred_share": 2 / 3, "longer_preferred_pairs": 3}
    )
    assert bias([("tie", 1, 2)]) == {}


def test_warnings_come_beyond_chance_only() -> None:
    assert warnings({"side_a_share": 0.547}, 774) == []  # measured among people whose sides were shuffled
    assert warnings({"side_a_share": 0.9}, 12) == []
    assert "left answer" in warnings({"side_a_share": 0.62}, 400)[0]
    assert "longer answer" in warnings({"longer_preferred_share": 0.8, "longer_preferred_pairs": 50}, 50)[0]
    assert "raters agree in 50%" in warnings(
        {"people_agreement_clear": 0.5, "people_agreement_clear_pairs": 60}, 60
    )[0]  # fmt: skip
    assert warnings({"people_agreement_clear": 0.709, "people_agreement_clear_pairs": 86}, 86) == []

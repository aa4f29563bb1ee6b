from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llm_core.contract import BadInput
from llm_core.feedback.raters import read_people, simulated_preference


def line(**changes: Any) -> str:
    vote = {
        "id": "t1", "prompt": [{"role": "user", "content": "2 + 2 = ?"}], "answer_a": "4", "answer_b": "5",
        "preference": "a", "rater": "r1",
    }  # fmt: skip
    return json.dumps(vote | changes) + "\n"


def test_the_latest_vote_of_a_rater_counts(tmp_path: Path) -> None:
    path = tmp_path / "votes.jsonl"
    path.write_text(line() + "\n" + line(rater="r2") + line(preference="tie", ts="2026-01-02", seconds=3.5))
    votes = read_people(path)
    assert [(v.rater, v.preference) for v in votes] == [("r1", "tie"), ("r2", "a")]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("{not json}\n", "Invalid JSON"),
        (line(preference="left"), "preference"),
        (line(prompt=[]), "prompt"),
        (line(prompt=[{"role": "assistant", "content": "x"}]), "the user's"),
        (line(prompt=[{"role": "human", "content": "x"}]), "prompt.0.role"),
        (line(rater=""), "rater"),
        (line(colour="red"), "colour"),
        (line(seconds=-1), "seconds"),
        (line(edited_of="left"), "edited_of"),
        (line(sampling_a={"seed": [1]}), "sampling_a"),
        ("[]\n", "line 2"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, bad: str, message: str) -> None:
    path = tmp_path / "votes.jsonl"
    path.write_text(line() + bad)
    with pytest.raises(BadInput, match=r"votes\.jsonl: line 2") as error:
        read_people(path)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_no_file_and_an_empty_file(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no such file"):
        read_people(tmp_path / "votes.jsonl")
    (tmp_path / "votes.jsonl").touch()
    assert read_people(tmp_path / "votes.jsonl") == []


def test_the_simulated_rater_prefers_the_right_answer_and_errs_as_told() -> None:
    assert simulated_preference(True, False, noise=0.0, key="x") == "a"
    assert simulated_preference(False, True, noise=0.0, key="x") == "b"
    assert simulated_preference(True, True, noise=0.5, key="x") == "tie"
    assert simulated_preference(False, False, noise=0.5, key="x") == "both_bad"
    votes = [simulated_preference(False, True, noise=0.2, key=f"k{i}") for i in range(2000)]
    assert 0.17 < votes.count("a") / 2000 < 0.23
    assert votes == [simulated_preference(False, True, noise=0.2, key=f"k{i}") for i in range(2000)]

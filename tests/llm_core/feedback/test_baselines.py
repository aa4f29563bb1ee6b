from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from llm_core.feedback.baselines import right_by_length, right_by_words
from llm_core.feedback.preferences import Pair


def pair(chosen: str, rejected: str) -> Pair:
    return Pair([{"role": "user", "content": "?"}], chosen, rejected)


def test_length_learns_its_direction_from_training() -> None:
    longer, shorter = [pair("long answer", "no")] * 3, [pair("no", "long answer")]
    assert right_by_length(longer, shorter) == [0.0]
    assert right_by_length(shorter, shorter) == [1.0]
    assert right_by_length(longer, [pair("ab", "cd")]) == [0.5]


def test_word_counts_find_a_telling_word_and_nothing_in_noise() -> None:
    train = [pair(f"good {i % 7}", f"bad {i % 5}") for i in range(100)]
    assert right_by_words(train, [pair("a good one", "a bad one"), pair("bad", "good")]) == [1.0, 0.0]
    assert right_by_words(train, [pair("unheard", "of")]) == [0.5]


def test_baselines_on_real_preferences(shared_data: Path) -> None:
    """The floors measured with an independent script on the same file: 44.2% longer, bag of words 62.2% (n = 462)."""
    pairs = read_hh(shared_data / "hh_rlhf" / "harmless-base.test.jsonl.gz")
    longer = sum(len(p.chosen) > len(p.rejected) for p in pairs) / len(pairs)
    assert longer == pytest.approx(0.442, abs=0.01)
    cut = len(pairs) * 4 // 5
    found = right_by_words(pairs[:cut], pairs[cut:])
    assert 0.56 < sum(found) / len(found) < 0.68


def read_hh(path: Path) -> list[Pair]:
    with gzip.open(path, "rt") as lines:
        rows = [json.loads(text) for text in lines]
    answers = [[row[side].rpartition("\n\nAssistant:")[2] for side in ("chosen", "rejected")] for row in rows]
    return [pair(chosen, rejected) for chosen, rejected in answers if chosen != rejected]

"""Quality filters against datatrove's own decisions, and character repair."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llm_core.data.characters import repair
from llm_core.data.filters import (
    FilterOptions,
    c4_lines,
    c4_quality,
    fineweb_quality,
    gopher_quality,
    gopher_repetition,
    judge,
)

PROSE = (
    "The committee met on Tuesday to discuss the plans that have been with us for years. Nobody was surprised.\n"
    "It was said that the bridge would be built of stone, and that the old one had to go before the winter.\n"
    "Several members asked how much it would cost, but the mayor did not know, or would not say in public.\n"
    "After two hours everyone went home with more questions than answers. The next meeting is in the spring.\n"
    "Until then, the ferry carries people across the river, as it always has, whenever the weather lets it run."
)


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("GopherQuality", gopher_quality),
        ("GopherRepetition", gopher_repetition),
        ("FineWebQuality", fineweb_quality),
    ],
)
def test_all_decisions_equal_datatrove(shared_data: Path, name: str, function) -> None:
    with gzip.open(shared_data / "filters" / "datatrove_decisions.jsonl.gz", "rt") as file:
        rows = [json.loads(line) for line in file]
    different = [
        (row["id"], decision, row["regex_split"][name])
        for row in rows
        if (decision := function(row["text"], mode="datatrove") or "keep") != row["regex_split"][name]
    ]
    assert len(rows) == 600
    assert different == []


def test_default_mode_keeps_more_prose(shared_data: Path) -> None:
    with gzip.open(shared_data / "filters" / "datatrove_decisions.jsonl.gz", "rt") as file:
        texts = [json.loads(line)["text"] for line in file]
    kept = {mode: sum(gopher_quality(text, mode) is None for text in texts) for mode in ("default", "datatrove")}
    assert kept["default"] > kept["datatrove"]


def test_good_prose_passes_everything() -> None:
    options = FilterOptions(min_words=50, c4_quality=True, fineweb_quality=True)
    assert judge(PROSE, options) == (None, PROSE)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Too few words.", "too_few_words"),
        ("\n".join([PROSE.split("\n")[0]] * 9), "dup_para_frac"),
        (" ".join(["the bridge and the river"] * 60), "top_2_gram"),
        (" ".join(f"{i} {i + 1}" for i in range(200)), "gopher_below_avg_threshold"),
    ],
)
def test_reasons(text: str, reason: str) -> None:
    if reason == "dup_para_frac":
        text = text.replace("\n", "\n\n")
    assert judge(text, FilterOptions(min_words=20))[0] == reason


def test_c4_removes_lines() -> None:
    reason, text = c4_lines(
        PROSE + "\nHome | About | Contact\nThis site uses cookies to track you.\nCited text here.[12]"
    )
    assert reason is None
    assert text == PROSE + "\nCited text here."
    assert c4_quality(PROSE + "\nThe code is var x = {}.") == "curly_bracket"
    assert c4_quality("Lorem ipsum dolor sit amet.") == "lorem_ipsum"
    assert c4_quality("One sentence stands alone here.") == "too_few_sentences"


@given(st.text(max_size=300))
def test_no_text_crashes_a_filter(text: str) -> None:
    options = FilterOptions(c4_quality=True, fineweb_quality=True)
    for function in (gopher_quality, gopher_repetition, c4_quality, fineweb_quality):
        function(text)
    judge(text, options)


@pytest.mark.parametrize(
    ("damaged", "expected"),
    [
        ("schÃ¶n und groÃŸ", "schön und groß"),
        ("donâ€™t", "don\u2019t"),
        ("plain ascii", "plain ascii"),
        ("e\u0301t\u00e9", "\u00e9t\u00e9"),
        ("a\u00a0b\u2003c", "a b c"),
        ("a\u200bb\u202ec\ufeff\x07", "abc"),
        ("line \r\nnext\rlast\u2028end  \n\n\n\nfar", "line\nnext\nlast\nend\n\nfar"),
        ("lone \ud800 surrogate", "lone  surrogate"),
        ("\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645"),
    ],
)
def test_repair(damaged: str, expected: str) -> None:
    assert repair(damaged) == expected


@given(st.text(max_size=200) | st.text(alphabet="Ââ€™Ã¡\x80\x1f\u0302Aa \n\r\u00a0\u200b\ufffd", max_size=30))
@example("Â\x1f¡")
@settings(max_examples=500)
def test_repair_is_idempotent(text: str) -> None:
    once = repair(text)
    assert repair(once) == once
    once.encode()

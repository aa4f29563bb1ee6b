"""Characters: what is mended stays mended; what is clean comes back as it is."""

from __future__ import annotations

import itertools
import unicodedata
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llm_core.data.characters import CharacterOptions, part_special_tokens, repair

OPTIONS = [CharacterOptions(p, c) for p, c in itertools.product(("keep", "squeeze", "remove"), ("keep", "lower"))]
AWKWARD = st.sampled_from(
    ["Ã©", "â€™", "ï¿½", "Ã\x83Â©", "\ufffd", "\ud800", "\udfff", "e\u0301", "\u0301", "\u200b", "\u200d", "\ufeff",
     "\u202e", "\x00", "\x85", "\u2028", "\r\n", "\r", "\n\n\n", " \n", "\t", "\u3000", "\xa0", "!!!!!", "....",
     "…………", "----", "ﬁ", "İ", "ΑΣ", "\u037e\u037e;;;;", "<|end|>", "🏴\U000e0067\U000e007f", "\uffff", "Â",
     "ð\x9f\x98\x8a", "ÐŸÑ€", "한", "\u1112\u1161\u11ab", "$$$$", "a", " "]
)  # fmt: skip


@given(st.lists(st.one_of(AWKWARD, st.text(max_size=8)), max_size=12).map("".join), st.sampled_from(OPTIONS))
@example("Âï¿½\u2028Ã©", OPTIONS[0])  # mended in two rounds
@settings(max_examples=600, deadline=None)
def test_what_is_mended_needs_no_mending(text: str, options: CharacterOptions) -> None:
    once = repair(text, options)
    assert repair(once, options) == once
    assert unicodedata.is_normalized("NFC", once)
    assert once == once.strip()
    once.encode()  # no lone surrogates
    assert not set(once) & {chr(code) for code in (*range(9), *range(11, 32), 0x7F, 0x200B, 0x202E, 0xFEFF, 0xFFFF)}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The caf\u00c3\u00a9\u00e2\u20ac\u2122s menu", "The café’s menu"),
        ("ÐŸÑ€Ð¸Ð²ÐµÑ‚, Ð¼Ð¸Ñ€", "Привет, мир"),
        ("e\u0301t\u00e9", "été"),
        ("soft\u00adhyphen, zero\u200bwidth, \u202eright\u202c\u200e", "softhyphen, zerowidth, right"),
        ("a\u00a0b\u2003c\u3000d", "a b c d"),
        ("one\r\ntwo\rthree\u2028four  \n\n\n\n five\t\n", "one\ntwo\nthree\nfour\n\n five"),
        ("می\u200cخواهم 👩\u200d👩\u200d👧", "می\u200cخواهم 👩\u200d👩\u200d👧"),
        ("Wow!!!!!! Really?????? ---------- ....... ……………", "Wow!!! Really??? --- ... ………"),
        ("x = 'a' # __init__ >>> f(1) == 2 ...", "x = 'a' # __init__ >>> f(1) == 2 ..."),
        ("\ud800lone\udfff", "lone"),
        ("bell\x07 null\x00 escape\x1b[0m", "bell null escape[0m"),
        ("    indented\n\tcode", "indented\n\tcode"),
    ],
)  # fmt: skip
def test_examples(text: str, expected: str) -> None:
    assert repair(text) == expected


def test_punctuation_and_case_as_configured() -> None:
    text = "“Well-known,” she said: it’s 50% … off!!!!! नमस्ते"
    assert repair(text, CharacterOptions("keep")) == text
    assert repair(text, CharacterOptions("squeeze")).endswith("off!!! नमस्ते")
    assert repair(text, CharacterOptions("remove")) == "Well known she said it s 50 off नमस्ते", "marks of letters stay"
    assert repair("ÄRGER Straße", CharacterOptions(case="lower")) == "ärger straße"


def test_clean_text_comes_back_as_it_is(shared_data: Path) -> None:
    for line in (shared_data / "wikitext2" / "valid.txt").read_text().splitlines():
        assert repair(line, CharacterOptions("keep")) == line.strip()


def test_text_that_spells_special_tokens_is_parted() -> None:
    text = "say <|endoftext|> or <|im_start|>user, a <| b |> c, x<|y, <||>"
    parted, count = part_special_tokens(text)
    assert parted == "say <| endoftext|> or <| im_start|>user, a <| b |> c, x<|y, <||>"
    assert count == 2
    assert part_special_tokens(parted) == (parted, 0)


def test_long_runs_take_no_square_of_time() -> None:
    """A million of each: with a square of the time none of these would end today."""
    for run in (" ", "\t", "\n", "!", "\u200b", "e\u0301", "Ã©", " \n", "\xa0", "\r"):
        assert len(repair(f"a \n{run * 1_000_000}b")) < 4_000_000

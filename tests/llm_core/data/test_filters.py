"""Quality filters against datatrove's own decisions, and character repair."""

from __future__ import annotations

import gzip
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from llm_core.contract import BadInput
from llm_core.data.characters import repair
from llm_core.data.filters import (
    C4Limits,
    FilterOptions,
    RepetitionLimits,
    UrlLists,
    bad_words,
    c4_lines,
    c4_paragraphs,
    c4_quality,
    fineweb_quality,
    gopher_quality,
    gopher_repetition,
    judge,
    listed_url,
)
from llm_core.data.heuristics import gopher, repetition, words
from llm_core.data.heuristics.c4 import count_sentences

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


@pytest.fixture(scope="module")
def decided(shared_data: Path) -> list[dict[str, Any]]:
    """600 real documents with datatrove's decisions."""
    with gzip.open(shared_data / "filters" / "datatrove_decisions.jsonl.gz", "rt") as file:
        return [json.loads(line) for line in file]


def test_c4_equals_datatrove_with_its_spacy_sentences(decided: list[dict[str, Any]]) -> None:
    for name, limits in (
        ("C4Quality_paper", C4Limits()),
        ("C4Quality_fineweb", C4Limits(terminal_punctuation=False)),
    ):
        ours = [c4_lines(row["text"], limits)[0] or "keep" for row in decided]
        assert ours == [row["spacy_split"][name] for row in decided]
    kept = [c4_paragraphs(row["text"]) is None for row in decided]
    assert kept == [row["spacy_split"]["C4Paragraph"] == "keep" for row in decided]


def plain_top(tokens: tuple[str, ...], n: int) -> int:
    """Characters under the most frequent n-gram, the first of equals, as datatrove counts them."""
    grams = Counter(" ".join(tokens[place : place + n]) for place in range(len(tokens) - n + 1))
    gram, count = grams.most_common(1)[0] if grams else ("", 0)
    return len(gram) * count


def plain_duplicated(tokens: tuple[str, ...], n: int) -> int:
    """Characters in repeated n-grams, read from left to right, as datatrove counts them."""
    seen: set[str] = set()
    characters = place = 0
    while place < len(tokens) - n + 1:
        gram = "".join(tokens[place : place + n])
        if gram in seen:
            characters += len(gram)
            place += n
        else:
            seen.add(gram)
            place += 1
    return characters


def plain_repetition(text: str, limits: RepetitionLimits) -> str | None:
    """Gopher's repetition rules with nothing but strings."""
    if not text.strip():
        return None
    for name, parts in (("para", re.split(r"\n{2,}", text.strip())), ("line", re.split(r"\n+", text))):
        again = [part for place, part in enumerate(parts) if part in parts[:place]]
        most = (limits.paragraphs, limits.paragraph_characters)
        most = most if name == "para" else (limits.lines, limits.line_characters)
        if len(again) / len(parts) > most[0]:
            return f"dup_{name}_frac"
        if sum(map(len, again)) / len(text) > most[1]:
            return f"dup_{name}_char_frac"
    tokens = tuple(re.findall(r"\w+(?:['’]\w+)?|[^\w\s]", text))
    for n, share in zip((2, 3, 4), limits.top_n_grams, strict=True):
        if plain_top(tokens, n) / len(text) > share:
            return f"top_{n}_gram"
    for n, share in zip((5, 6, 7, 8, 9, 10), limits.duplicated_n_grams, strict=True):
        if plain_duplicated(tokens, n) / len(text) > share:
            return f"duplicated_{n}_n_grams"
    return None


PIECES = st.sampled_from(
    [
        "a",
        "b",
        "ab",
        "ba",
        "abc",
        "it's",
        "o’clock",
        "rock'n'roll",
        "a'b'c'd'e",
        "12",
        "3",
        "_x",
        "#",
        "...",
        "é",
        "中文",
    ]
)
GAPS = st.sampled_from([" ", " ", " ", "", "\n", "\n\n", "\n\n\n", "  ", "\t", "'", "\u3000"])
REPEATING = st.lists(st.tuples(PIECES, GAPS), min_size=1, max_size=120).map(lambda p: "".join(map("".join, p)))
LIMITS = st.sampled_from(
    [
        RepetitionLimits(),
        RepetitionLimits(1, 1, 1, 1),
        RepetitionLimits(1, 1, 1, 1, (0.3, 0.3, 0.3), (0.5, 0.5, 0.5, 0.4, 0.4, 0.3)),
        RepetitionLimits(1, 1, 1, 1, (1, 1, 1), (0.9, 0.8, 0.7, 0.6, 0.5, 0.4)),
    ]
)


@pytest.fixture
def arrays_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short texts are looked at as arrays, too."""
    monkeypatch.setattr(words, "SHORT", 1)


@pytest.mark.usefixtures("arrays_for_all")
@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(REPEATING, LIMITS)
def test_repetition_equals_the_plain_version(text: str, limits: RepetitionLimits) -> None:
    words.arrays.cache_clear()
    assert gopher_repetition(text, limits=limits) == plain_repetition(text, limits)


@pytest.mark.usefixtures("arrays_for_all")
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(REPEATING | st.text(min_size=1, max_size=60))
def test_arrays_hold_the_words_of_the_split(text: str) -> None:
    words.arrays.cache_clear()
    found, tokens = words.arrays(text), words.words(text)
    if found is None:
        assert max(map(ord, text)) >= 0x20000
        return
    assert found.lengths.tolist() == [len(token) for token in tokens]
    for n in (1, 2, 5):
        grams = ["".join(tokens[place : place + n]) for place in range(len(tokens) - n + 1)]
        hashes = found.runs(n).tolist()
        assert len(hashes) == len(grams)
        assert len(set(zip(hashes, grams, strict=True))) == len(set(hashes)) == len(set(grams))
        if grams:
            assert repetition._top_n_gram(found, n) == repetition.top_n_gram(tokens, n)
            assert repetition._duplicated_n_grams(found, n) == repetition.duplicated_n_grams(tokens, n)
    assert gopher._count(found) == gopher._count_short(tokens)


@pytest.mark.parametrize(
    ("line", "count"),
    [
        ("One sentence. And another! A third?", 3),
        ("Dr. Smith met Mr. Jones at 3.14 p.m. in the U.S. embassy.", 1),
        ('He said "no." Then he left.', 2),
        ("Wait... what was that", 1),
        ("It ended here.Then it went on.", 2),
        ("See example.com/a.B for more.", 1),
        ("Really?! Yes.", 2),
        ("...", 1),
    ],
)
def test_sentences_of_a_line(line: str, count: int) -> None:
    assert count_sentences(line) == count


def test_bad_words(tmp_path: Path) -> None:
    (tmp_path / "en.txt").write_text("# comment\nDarn\nvery bad\n;-(\n")
    with gzip.open(tmp_path / "ja.txt.gz", "wt") as file:
        file.write("悪い\n")
    lists = (tmp_path / "en.txt", tmp_path / "ja.txt.gz")
    for text in ("Oh DARN!", "a Very Bad day", "sad ;-( face", "これは悪いです", "darn"):
        assert bad_words(text, lists) == "c4_bad_words", text
    for text in ("darned", "very badly", "very  bad", "", "# comment", "xdarn_"):
        assert bad_words(text, lists) is None, text
    assert judge(PROSE + " Darn.", FilterOptions(bad_words=lists))[0] == "c4_bad_words"
    (tmp_path / "en.txt").write_text("a word that was not there before\n")
    assert bad_words("Oh DARN!", lists) is None, "a list that changed is read again"
    with pytest.raises(BadInput, match=r"absent\.txt: this list cannot be read"):
        bad_words("text", (tmp_path / "absent.txt",))


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("https://www.evil.co.uk/page", "url_domain"),
        ("https://a.b.blog.example.org/", "url_subdomain"),
        ("https://example.org/fine", None),
        ("https://example.net/this/page.html", "url_listed"),
        ("https://example.net/casino-night", "url_banned_word"),
        ("https://example.net/casinonight", None),
        ("https://example.net/free", None),
        ("https://example.net/free-prize", "url_soft_banned_words"),
        ("https://example.net/x-x-x-rated", "url_banned_subword"),
        ("http://192.0.2.1/", None),
        ("", None),
        (None, None),
    ],
)
def test_url_lists(tmp_path: Path, url: str | None, reason: str | None) -> None:
    entries = {
        "domains": "evil.co.uk\nblog.example.org\n",
        "urls": "https://example.net/this/page.html\n",
        "banned_words": "casino\n",
        "soft_banned_words": "free\nprize\n",
        "banned_subwords": "xxx\n",
    }
    for name, text in entries.items():
        (tmp_path / name).write_text(text)
    lists = UrlLists(**{name: (tmp_path / name,) for name in entries})
    assert listed_url(url, lists) == reason
    assert listed_url(url, UrlLists()) is None


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

"""Gopher's quality rules (Rae et al. 2021) on words, symbols and lines; thresholds and names as in datatrove 0.10."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from llm_core.data.codepoints import U64, Stretches, code_points, tables
from llm_core.data.heuristics.words import LETTER, MEANING, PUNCTUATION, Words, arrays, words

STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")


@dataclass(frozen=True, slots=True)
class QualityLimits:
    """Thresholds; shares are of all words or lines."""

    min_words: int = 50
    max_words: int = 100_000
    min_mean_length: float = 3.0
    max_mean_length: float = 10.0
    max_symbols: float = 0.1
    max_bullet_lines: float = 0.9
    max_ellipsis_lines: float = 0.3
    min_alphabetic: float = 0.8
    min_stop_words: int = 2


@dataclass(frozen=True, slots=True)
class _Counts:
    words: int
    meaning: int
    characters: int
    alphabetic: int
    alphabetic_meaning: int
    stop_words: int


def gopher_quality(text: str, mode: str = "default", limits: QualityLimits = QualityLimits()) -> str | None:
    """None, or the first rule that fails. Mode datatrove counts punctuation marks as words that lack a letter."""
    found = arrays(text)
    counts = _count(found) if found else _count_short(words(text))
    if counts.meaning < limits.min_words:
        return "gopher_short_doc"
    if counts.meaning > limits.max_words:
        return "gopher_long_doc"
    mean = counts.characters / max(counts.meaning, 1)
    if mean < limits.min_mean_length:
        return "gopher_below_avg_threshold"
    if mean > limits.max_mean_length:
        return "gopher_above_avg_threshold"
    if reason := _symbols(text, max(counts.words, 1), limits):
        return reason
    letters, of = (
        (counts.alphabetic, counts.words) if mode == "datatrove" else (counts.alphabetic_meaning, counts.meaning)
    )
    if letters / max(of, 1) < limits.min_alphabetic:
        return "gopher_below_alpha_threshold"
    return "gopher_enough_stop_words" if counts.stop_words < limits.min_stop_words else None


def _count(found: Words) -> _Counts:
    meaning = (found.flags & MEANING) != 0
    letters = (found.flags & LETTER) != 0
    return _Counts(
        words=found.count,
        meaning=int(meaning.sum()),
        characters=int(found.lengths[meaning].sum()),
        alphabetic=int(letters.sum()),
        alphabetic_meaning=int((letters & meaning).sum()),
        stop_words=int((found.runs(1) == _stop_words()).any(axis=1).sum()),
    )


def _count_short(tokens: tuple[str, ...]) -> _Counts:
    counted = [token for token in tokens if not PUNCTUATION.issuperset(token)]
    return _Counts(
        words=len(tokens),
        meaning=len(counted),
        characters=sum(map(len, counted)),
        alphabetic=sum(any(map(str.isalpha, token)) for token in tokens),
        alphabetic_meaning=sum(any(map(str.isalpha, token)) for token in counted),
        stop_words=len(set(STOP_WORDS).intersection(tokens)),
    )


@lru_cache(1)
def _stop_words() -> U64:
    """(stop words, 1) their hashes, as `Words.runs` makes them."""
    hashes = [
        Stretches(tables().value[code_points(word)]).hashes(np.array([0]), np.array([len(word)])) for word in STOP_WORDS
    ]
    return np.array(hashes)


def _symbols(text: str, count: int, limits: QualityLimits) -> str | None:
    if text.count("#") / count > limits.max_symbols:
        return "gopher_too_many_hashes"
    ellipses = text.count("...") + text.count("…")
    if ellipses / count > limits.max_symbols:
        return "gopher_too_many_ellipsis"
    lines = text.splitlines()
    most = text.count("•") + text.count("-")
    if most > limits.max_bullet_lines * len(lines) and (
        sum(line.lstrip().startswith(("•", "-")) for line in lines) / len(lines) > limits.max_bullet_lines
    ):
        return "gopher_too_many_bullets"
    if ellipses > limits.max_ellipsis_lines * len(lines) and (
        sum(line.rstrip().endswith(("...", "…")) for line in lines) / len(lines) > limits.max_ellipsis_lines
    ):
        return "gopher_too_many_end_ellipsis"
    return None

"""Gopher's repetition rules (Rae et al. 2021) on paragraphs, lines and n-grams of words, as datatrove 0.10 counts them.

The exact count of repeated n-grams goes through the words one by one. It is needed only where a bound, taken from
hashes of all n-grams at once, does not settle the rule: the characters under any repeat are at least those that the
exact count finds. Equal 64-bit hashes are taken for equal n-grams.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llm_core.data.codepoints import U64, mixed
from llm_core.data.heuristics.words import Words, arrays, words

TOP_N = (2, 3, 4)
DUPLICATED_N = (5, 6, 7, 8, 9, 10)


@dataclass(frozen=True, slots=True)
class RepetitionLimits:
    """Thresholds, each a share of the paragraphs, lines or characters."""

    paragraphs: float = 0.3
    paragraph_characters: float = 0.2
    lines: float = 0.3
    line_characters: float = 0.2
    top_n_grams: tuple[float, ...] = (0.20, 0.18, 0.16)
    """For n = 2, 3, 4."""
    duplicated_n_grams: tuple[float, ...] = (0.15, 0.14, 0.13, 0.12, 0.11, 0.10)
    """For n = 5 to 10."""


def gopher_repetition(
    text: str,
    mode: str = "default",  # noqa: ARG001
    limits: RepetitionLimits = RepetitionLimits(),
) -> str | None:
    """None, or the first rule that fails; the same in both modes."""
    if not text.strip():
        return None
    paragraphs = [part for piece in text.strip().split("\n\n") if (part := piece.lstrip("\n"))]
    repeats, characters = repeated(paragraphs)
    if repeats / len(paragraphs) > limits.paragraphs:
        return "dup_para_frac"
    if characters / len(text) > limits.paragraph_characters:
        return "dup_para_char_frac"
    lines = _lines(text)
    repeats, characters = repeated(lines)
    if repeats / len(lines) > limits.lines:
        return "dup_line_frac"
    if characters / len(text) > limits.line_characters:
        return "dup_line_char_frac"
    found = arrays(text)
    return _top(text, found, limits) or _duplicated(text, found, limits)


def _lines(text: str) -> list[str]:
    """The text cut at runs of line ends; a run at its begin or end leaves an empty line there."""
    lines = [line for line in text.split("\n") if line]
    return [*[""] * text.startswith("\n"), *lines, *[""] * text.endswith("\n")]


def repeated(parts: Sequence[str]) -> tuple[int, int]:
    """How many parts came before, and their characters."""
    if len(set(parts)) == len(parts):
        return 0, 0
    seen: set[str] = set()
    count = characters = 0
    for part in parts:
        if part in seen:
            count += 1
            characters += len(part)
        else:
            seen.add(part)
    return count, characters


def _top(text: str, found: Words | None, limits: RepetitionLimits) -> str | None:
    for n, share in zip(TOP_N, limits.top_n_grams, strict=True):
        if found is None:
            characters = top_n_gram(words(text), n)
        elif _most_under_one_n_gram(found, n) / len(text) <= share:
            continue
        else:
            characters = _top_n_gram(found, n)
        if characters / len(text) > share:
            return f"top_{n}_gram"
    return None


def _duplicated(text: str, found: Words | None, limits: RepetitionLimits) -> str | None:
    for n, share in zip(DUPLICATED_N, limits.duplicated_n_grams, strict=True):
        if found is None:
            characters = duplicated_n_grams(words(text), n)
        elif found.characters_under(_repeats(found.runs(n)), n) / len(text) <= share:  # what the exact count is below
            continue
        else:
            characters = _duplicated_n_grams(found, n)
        if characters / len(text) > share:
            return f"duplicated_{n}_n_grams"
    return None


def top_n_gram(tokens: tuple[str, ...], n: int) -> int:
    """Characters under the most frequent n-gram; of equally frequent ones the first counts."""
    grams = Counter(zip(*(tokens[start:] for start in range(n)), strict=False))
    if not grams:
        return 0
    gram, count = grams.most_common(1)[0]
    return len(" ".join(gram)) * count


def duplicated_n_grams(tokens: tuple[str, ...], n: int) -> int:
    """Characters in n-grams that came before, read from left to right without overlap."""
    seen: set[str] = set()
    characters = position = 0
    while position <= len(tokens) - n:
        gram = "".join(tokens[position : position + n])
        if gram in seen:
            characters += len(gram)
            position += n
        else:
            seen.add(gram)
            position += 1
    return characters


def _most_under_one_n_gram(found: Words, n: int) -> float:
    """A bound of `top_n_gram`: the most characters in one of 8,192 buckets of n-grams."""
    if found.count < n:
        return 0.0
    buckets = (found.runs(n) >> np.uint64(51)).astype(np.intp)
    return float(np.bincount(buckets, weights=found.characters(n) + (n - 1)).max())


def _top_n_gram(found: Words, n: int) -> int:
    """`top_n_gram` from hashes: n words written together, and the lengths of all but the last, are the n words."""
    keys = found.runs(n)
    for place in range(n - 1):
        keys = keys + mixed(found.lengths[place : place + len(keys)].astype(np.uint64) + np.uint64(place << 32))
    _, first, counts = np.unique(keys, return_index=True, return_counts=True)
    place = int(first[counts == counts.max()].min())
    return int((found.characters(n)[place] + n - 1) * counts.max())


def _repeats(grams: U64) -> NDArray[np.intp]:
    """The places, ascending, of those that came before.

    Each goes into one of 65,536 slots; one that finds itself there, or its like, is settled. The rest, which share a
    slot with another, are compared among themselves.
    """
    slots = (grams >> np.uint64(48)).astype(np.intp)
    places = np.arange(len(grams))
    first = np.empty(1 << 16, np.intp)  # only slots that were written are read
    first[slots[::-1]] = places[::-1]  # of several the last one written stays
    holder = first[slots]
    like = grams[holder] == grams
    known = like & (holder != places)
    rest = np.flatnonzero(~like)
    if len(rest):
        order = rest[np.argsort(grams[rest], kind="stable")]
        ordered = grams[order]
        known[order[1:][ordered[1:] == ordered[:-1]]] = True
    return np.flatnonzero(known)


def _duplicated_n_grams(found: Words, n: int) -> int:
    """`duplicated_n_grams` from hashes; n-grams that stand only once cannot matter and are not looked at."""
    _, kinds, counts = np.unique(found.runs(n), return_inverse=True, return_counts=True)
    places = np.flatnonzero(counts[kinds] > 1)
    seen: set[int] = set()
    characters = free = 0
    for place, kind, size in zip(
        places.tolist(), kinds[places].tolist(), found.characters(n)[places].tolist(), strict=True
    ):
        if place < free:
            continue
        if kind in seen:
            characters += size
            free = place + n
        else:
            seen.add(kind)
    return characters

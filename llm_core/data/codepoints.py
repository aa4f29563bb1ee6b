"""Text as arrays of code points: what each character is, and hashes of any stretch of text, in numpy.

A prefix sum of value(character) x BASE^position, modulo 2^64, gives the hash of every stretch by one subtraction and
one multiplication: words and runs of words are hashed without cutting a single string (Karp and Rabin 1987).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

U64 = NDArray[np.uint64]
CHUNK = 1 << 15
KNOWN = 0x20000
"""Code points below this are in the tables: the two planes that nearly all text is written in."""
_BASE = 0x9E3779B97F4A7C15
_INVERSE = pow(_BASE, -1, 2**64)
_SCRIPTS_WITHOUT_SPACES = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x3040, 0x30FF),  # Hiragana, Katakana
    (0x3400, 0x4DBF),  # Han
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
)


def mixed(values: U64) -> U64:
    """Each number scrambled (the finaliser of splitmix64): neighbours have nothing in common afterwards."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def code_points(text: str) -> NDArray[np.uint32]:
    """(characters,) the code points of a text, read-only; lone surrogates are kept."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


@dataclass(frozen=True)
class Tables:
    """For each known code point: a random value, the same in lower case (0 unless a letter, digit or mark), flags."""

    value: U64
    folded: U64
    word: NDArray[np.bool_]
    space: NDArray[np.bool_]
    letter: NDArray[np.bool_]
    alone: NDArray[np.bool_]
    """Letters of scripts that put no space between words: each counts as a word of its own."""


@lru_cache(1)
def tables() -> Tables:
    """Made on first use: a few hundredths of a second."""
    characters = [chr(code) for code in range(KNOWN)]
    value = mixed(np.arange(1, KNOWN + 1, dtype=np.uint64))
    word = np.array([c.isalnum() or c == "_" for c in characters])
    written = word | np.array([unicodedata.category(c)[0] == "M" for c in characters])
    lower = np.array([ord(low) if len(low := c.lower()) == 1 else ord(c) for c in characters])
    alone = np.zeros(KNOWN, np.bool_)
    for first, last in _SCRIPTS_WITHOUT_SPACES:
        alone[first : last + 1] = written[first : last + 1]
    return Tables(
        value=value,
        folded=np.where(written, value[lower], np.uint64(0)),
        word=word,
        space=np.array([c.isspace() for c in characters]),
        letter=np.array([c.isalpha() for c in characters]),
        alone=alone,
    )


@lru_cache(4)
def _powers(base: int, size: int) -> U64:
    """(size,) base^0, base^1, ... modulo 2^64."""
    steps = np.full(size, base, np.uint64)
    steps[0] = 1
    return np.cumprod(steps, dtype=np.uint64)


class Stretches:
    """Hashes of stretches of a sequence of values."""

    def __init__(self, values: U64) -> None:
        size = max(1 << 16, 1 << len(values).bit_length())
        self._inverse = _powers(_INVERSE, size)
        self._prefix = np.zeros(len(values) + 1, np.uint64)
        np.cumsum(values * _powers(_BASE, size)[: len(values)], out=self._prefix[1:])

    def hashes(self, starts: NDArray[np.intp], ends: NDArray[np.intp]) -> U64:
        """(stretches,) one hash for each values[start:end]; equal stretches have equal hashes wherever they stand."""
        result: U64 = (self._prefix[ends] - self._prefix[starts]) * self._inverse[starts]
        return result

    def between(self, bounds: NDArray[np.intp]) -> Bounded:
        """The same for stretches that begin and end at some of these places only."""
        return Bounded(self._prefix[bounds], self._inverse[bounds])


class Bounded:
    """Hashes of stretches between ascending bounds: the same numbers as `Stretches.hashes`, without looking up."""

    def __init__(self, prefix: U64, inverse: U64) -> None:
        self._prefix, self._inverse = prefix, inverse

    def runs(self, n: int) -> U64:
        """(bounds - n,) one hash for each stretch from a bound to the n-th after it."""
        last = max(len(self._prefix) - n, 0)
        result: U64 = (self._prefix[n:] - self._prefix[:last]) * self._inverse[:last]
        return result


def chunks(texts: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Ranges of texts of about CHUNK characters together: their arrays stay in the processor's cache."""
    first = length = 0
    for place, text in enumerate(texts):
        length += len(text)
        if length >= CHUNK:
            yield first, place + 1
            first, length = place + 1, 0
    if first < len(texts):
        yield first, len(texts)

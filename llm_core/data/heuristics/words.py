"""One word split for all filters: words with their inner apostrophe, and each punctuation mark as one.

Short texts are split by a regular expression. Long ones are looked at as arrays of code points: the same words, but as
places, lengths, flags and hashes, so that no string is cut. Both ways give the same decisions.
"""

from __future__ import annotations

import re
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from llm_core.data.codepoints import KNOWN, U64, Stretches, code_points, tables

TERMINAL = frozenset(
    "!.?\u0589\u061d\u061e\u061f\u06d4\u0700\u0701\u0702\u07f9\u0837\u0839\u083d\u083e\u0964\u0965\u104a"
    "\u104b\u1362\u1367\u1368\u166e\u1735\u1736\u17d4\u17d5\u1803\u1809\u1944\u1945\u1aa8\u1aa9\u1aaa"
    "\u1aab\u1b4e\u1b4f\u1b5a\u1b5b\u1b5e\u1b5f\u1b7d\u1b7e\u1b7f\u1c3b\u1c3c\u1c7e\u1c7f\u2024\u203c"
    "\u203d\u2047\u2048\u2049\u2cf9\u2cfa\u2cfb\u2e2e\u2e3c\u2e53\u2e54\u2e60\u2e61\u3002\ua4ff\ua60e"
    "\ua60f\ua6f3\ua6f7\ua876\ua877\ua8ce\ua8cf\ua92f\ua9c8\ua9c9\uaa5d\uaa5e\uaa5f\uaaf0\uaaf1\uabeb"
    "\ufe12\ufe15\ufe16\ufe52\ufe56\ufe57\uff01\uff0e\uff1f\uff61\U00010a56\U00010a57\U00010f55\U00010f56"
    "\U00010f57\U00010f58\U00010f59\U00010f86\U00010f87\U00010f88\U00010f89\U00011047\U00011048\U000110be"
    "\U000110bf\U000110c0\U000110c1\U00011141\U00011142\U00011143\U000111c5\U000111c6\U000111cd\U000111de"
    "\U000111df\U00011238\U00011239\U0001123b\U0001123c\U000112a9\U000113d4\U000113d5\U0001144b\U0001144c"
    "\U000115c2\U000115c3\U000115c9\U000115ca\U000115cb\U000115cc\U000115cd\U000115ce\U000115cf\U000115d0"
    "\U000115d1\U000115d2\U000115d3\U000115d4\U000115d5\U000115d6\U000115d7\U00011641\U00011642\U0001173c"
    "\U0001173d\U0001173e\U00011944\U00011946\U00011a42\U00011a43\U00011a9b\U00011a9c\U00011c41\U00011c42"
    "\U00011ef7\U00011ef8\U00011f43\U00011f44\U00016a6e\U00016a6f\U00016af5\U00016b37\U00016b38\U00016b44"
    "\U00016d6e\U00016d6f\U00016e98\U0001bc9f\U0001da88"
)
"""Characters that end a sentence in some script (Unicode property Sentence_Terminal)."""
PUNCTUATION = (
    frozenset("!/—”:％１〈&(、━\\【#%「」，】；+^]~“《„';’{|∶´[=-`*．（–？！：$～«〉,><》)?）。…@_.\"}►»")
    | frozenset(chr(code) for code in (*range(9), *range(11, 32), *range(127, 160)))
    | TERMINAL
)
_WORDS = re.compile(r"\w+(?:['’]\w+)?|[^\w\s]")
WORD, SPACE, LETTER, MEANING = 1, 2, 4, 8
"""Flags of a character; MEANING: no space and not in PUNCTUATION. A word has the flags of all its characters."""
SHORT = 600
"""Characters: below this the regular expression is faster."""


@lru_cache(maxsize=4)
def words(text: str) -> tuple[str, ...]:
    """The words as strings."""
    return tuple(_WORDS.findall(text))


@lru_cache(1)
def _flags() -> NDArray[np.uint8]:
    table = tables()
    punctuation = np.zeros(KNOWN, np.bool_)
    punctuation[[ord(character) for character in PUNCTUATION]] = True
    flags = table.word * np.uint8(WORD) | table.letter * np.uint8(LETTER) | ~punctuation * np.uint8(MEANING)
    return np.where(table.space, np.uint8(SPACE), flags)


class Words:
    """The words of a text as arrays, one entry a word."""

    def __init__(self, points: NDArray[np.uint32]) -> None:
        flags = _flags()[points]
        space = (flags & SPACE) != 0
        inside = np.zeros(len(points) + 2, np.bool_)
        inside[1:-1] = (flags & WORD) != 0
        _join(points, inside)
        marks = ~(inside[1:-1] | space)
        starts = np.flatnonzero((inside[1:-1] & ~inside[:-2]) | marks)
        ends = np.flatnonzero((inside[1:-1] & ~inside[2:]) | marks) + 1
        self.count = len(starts)
        self.lengths = ends - starts
        self.flags = np.bitwise_or.reduceat(flags, starts) if self.count else flags[:0]
        self._bounds = np.zeros(self.count + 1, np.intp)
        np.cumsum(self.lengths, out=self._bounds[1:])
        self._hashes = Stretches(tables().value[points[~space]]).between(self._bounds)

    def runs(self, n: int) -> U64:
        """(count - n + 1,) a hash of each n words written without spaces between them."""
        return self._hashes.runs(n)

    def characters(self, n: int) -> NDArray[np.intp]:
        """(count - n + 1,) characters of each n words without spaces."""
        return self._bounds[n:] - self._bounds[: max(self.count - n + 1, 0)]

    def characters_under(self, places: NDArray[np.intp], n: int) -> int:
        """Characters of the words that belong to a run of n words beginning at one of the ascending places."""
        if not len(places):
            return 0
        begins = np.maximum(places[1:], places[:-1] + n)
        ends = self._bounds[places + n].sum()
        return int(ends - self._bounds[begins].sum() - self._bounds[places[0]])


def _join(points: NDArray[np.uint32], inside: NDArray[np.bool_]) -> None:
    """Mark apostrophes between letters as inside a word; of several in one word the second, fourth ... divide it."""
    quotes = np.flatnonzero((points == 0x27) | (points == 0x2019))
    joints = quotes[inside[quotes] & inside[quotes + 2]]
    if len(joints) == 0:
        return
    between = np.searchsorted(np.flatnonzero(~inside[1:-1]), joints)
    first = np.concatenate([[True], np.diff(between) != 1])
    places = np.arange(len(joints))
    rank = places - np.maximum.accumulate(np.where(first, places, 0))
    inside[joints[rank % 2 == 0] + 1] = True


@lru_cache(maxsize=4)
def arrays(text: str) -> Words | None:
    """The words as arrays; None for a short text, or one with characters beyond the tables: take `words` then."""
    if len(text) < SHORT:
        return None
    points = code_points(text)
    return Words(points) if int(points.max()) < KNOWN else None

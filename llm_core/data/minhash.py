"""MinHash signatures: how alike two documents are, from 224 bytes each (Broder 1997).

112 hash functions over the document's word 5-grams, as FineWeb takes them, in 14 bands of 8. Of each minimum the low 16
bits are kept (b-bit minwise hashing, Li and Koenig 2010): two unequal minima look equal once in 65,536 times, so the
signature serves both for finding pairs by equal bands and for estimating how alike they are, at half the room.
The same signature is cut into bands in three ways, which finds more.
Words are runs of letters, digits and marks in lower case; in scripts without spaces each letter is one.
rensa computes the minima; without it numpy does, by another family of functions: `ALGORITHM` says which.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from llm_core.data.codepoints import KNOWN, U64, Stretches, chunks, code_points, mixed, tables

try:
    from rensa import RMinHash
except ImportError:
    RMinHash = None

BANDS, ROWS = 14, 8
FUNCTIONS = BANDS * ROWS
BYTES = 2 * FUNCTIONS
WIDTH = 5
"""Words in a shingle."""
ALGORITHM = f"MinHash, 3 x {BANDS} bands of {ROWS}, word {WIDTH}-grams, 16 bits each; " + (
    f"rensa RMinHash version {RMinHash.ALGORITHM_VERSION}" if RMinHash else "numpy multiply-shift version 1"
)
_ALL = np.arange(FUNCTIONS)
_COLUMNS = np.concatenate(
    [_ALL.reshape(BANDS, ROWS), _ALL.reshape(ROWS, BANDS).T, (_ALL * 37 % FUNCTIONS).reshape(BANDS, ROWS)]
)
LOOKS = len(_COLUMNS)
"""Bands that are compared: the signature is cut into 14 bands in three ways. One way finds 92% of the pairs that are
alike to 0.8, two 98%, three 99%; no byte more is stored."""
_SEED = 1
_FACTORS = mixed(np.arange(7, 7 + WIDTH, dtype=np.uint64)) | np.uint64(1)
Signatures = NDArray[np.uint16]


def signature(text: str) -> bytes | None:
    """The signature of a text, 224 bytes; None if it has fewer than five words."""
    found, there = signatures([text])
    return found[0].tobytes() if there[0] else None


def signatures(texts: Sequence[str]) -> tuple[Signatures, NDArray[np.bool_]]:
    """((texts, 112) signatures, (texts,) whether there is one: a text of fewer than five words has none)."""
    result = np.zeros((len(texts), FUNCTIONS), np.uint16)
    there = np.zeros(len(texts), np.bool_)
    for first, last in chunks(texts):
        shingles, offsets = shingle_hashes(texts[first:last])
        has = np.flatnonzero(np.diff(offsets)) + first
        there[has] = True
        if len(has):
            bounds = np.concatenate([offsets[has - first], offsets[-1:]])
            result[has] = _minima(shingles, bounds).astype(np.uint16)  # keeps the low bits
    return result, there


def similarity(a: Signatures, b: Signatures) -> NDArray[np.float64]:
    """(pairs,) estimated Jaccard similarity of the shingle sets of (pairs, 112) signatures; its error is below .05."""
    return np.asarray((a == b).mean(axis=-1), np.float64)


def band_keys(found: Signatures, band: int) -> U64:
    """(documents,) a key of one of the 42 bands: documents with equal keys may be alike."""
    rows = np.ascontiguousarray(found[:, _COLUMNS[band]]).view(np.uint64)
    return mixed(mixed(rows[:, 0]) + rows[:, 1])


def shingle_hashes(texts: Sequence[str]) -> tuple[U64, NDArray[np.int64]]:
    """((shingles,) hashes of the texts' word 5-grams one text after another, (texts + 1,) where each text begins)."""
    hashes, words = _word_hashes(texts)
    counts = np.diff(words)
    offsets = np.concatenate([[0], np.cumsum(np.maximum(counts - (WIDTH - 1), 0))])
    total = max(len(hashes) - (WIDTH - 1), 0)
    grams = np.zeros(total, np.uint64)
    for place, factor in enumerate(_FACTORS):
        grams += hashes[place : place + total] * factor
    text_of = np.repeat(np.arange(len(texts)), counts)
    inside = text_of[:total] == text_of[WIDTH - 1 :]
    return mixed(grams[inside]), offsets


def _word_hashes(texts: Sequence[str]) -> tuple[U64, NDArray[np.int64]]:
    """((words,) hashes of all words, (texts + 1,) the first word of each text)."""
    points = code_points("\n".join(texts))
    table = tables()
    most = int(points.max(initial=0))
    known = points if most < KNOWN else np.minimum(points, KNOWN - 1)
    values = table.folded[known]
    if most >= KNOWN:  # rare Han and emoji: each a word of its own
        values = np.where(points >= KNOWN, mixed(points.astype(np.uint64)), values)
    word = np.zeros(len(points) + 2, np.bool_)
    word[1:-1] = values != 0
    starts, ends = word[1:-1] & ~word[:-2], word[1:-1] & ~word[2:]
    if most >= 0x0E00:
        alone = np.zeros(len(points) + 2, np.bool_)
        alone[1:-1] = table.alone[known] | (points >= KNOWN)
        starts |= word[1:-1] & (alone[1:-1] | alone[:-2])
        ends |= word[1:-1] & (alone[1:-1] | alone[2:])
    first = np.flatnonzero(starts)
    begins = np.cumsum([0, *(len(text) + 1 for text in texts)])
    return Stretches(values).hashes(first, np.flatnonzero(ends) + 1), np.searchsorted(first, begins)


def _minima(shingles: U64, offsets: NDArray[np.int64]) -> NDArray[np.uint32]:
    """(texts, 112) the least value of each function over the shingles of each text; no text is empty."""
    if RMinHash is None:
        return numpy_minima(shingles, offsets)
    rows = RMinHash.digest_matrix_from_flat_token_hashes(shingles, offsets.astype(np.uint64), FUNCTIONS, _SEED)
    return np.array(rows.to_rows(), np.uint32)


def numpy_minima(shingles: U64, offsets: NDArray[np.int64]) -> NDArray[np.uint32]:
    """The same by multiply-shift hashing (Dietzfelbinger et al. 1997); comparable only with its own kind."""
    factors = mixed(np.arange(1, 2 * FUNCTIONS + 1, dtype=np.uint64)).reshape(2, FUNCTIONS)
    result = np.empty((len(offsets) - 1, FUNCTIONS), np.uint32)
    for place in range(FUNCTIONS):
        hashed = (shingles * (factors[0, place] | np.uint64(1)) + factors[1, place]) >> np.uint64(32)
        result[:, place] = np.minimum.reduceat(hashed, offsets[:-1])
    return result

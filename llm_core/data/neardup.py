"""Near duplicates: documents whose signatures agree in a whole band, checked, and joined into clusters.

Band by band the keys are sorted in numpy; documents with equal keys become pairs, each with the first and with the one
before it; a pair counts if the signatures' estimate of its Jaccard similarity reaches the threshold; pairs are joined
by union-find. On disk a document takes 224 bytes, in memory 8 for a key and 8 for its place at a time. What one
machine's memory cannot sort can be divided by the first bits of each band's keys; that is not built.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llm_core.data.minhash import BYTES, FUNCTIONS, LOOKS, Signatures, band_keys, similarity

_CHUNK = 1 << 16
Places = NDArray[np.int64]


def signatures_in(path: Path) -> Signatures:
    """The (documents, 112) signatures in a file, mapped, not read."""
    if path.stat().st_size == 0:
        return np.zeros((0, FUNCTIONS), np.uint16)
    return np.memmap(path, np.uint16, "r").reshape(-1, FUNCTIONS)


def pairs(found: Signatures, rank: Places, threshold: float) -> Places:
    """(pairs, 2) rows of signatures that are at least so alike, each pair once.

    `rank` (documents,) puts the rows into an order that does not depend on where they were found; rows below 0 are
    left out.
    """
    rows = np.flatnonzero(rank >= 0)
    rows = rows[np.argsort(rank[rows], kind="stable")]
    candidates = np.zeros(0, np.uint64)
    for band in range(LOOKS):
        keys = np.concatenate(
            [band_keys(np.asarray(found[rows[at : at + _CHUNK]]), band) for at in range(0, len(rows), _CHUNK)]
            or [np.zeros(0, np.uint64)]
        )
        candidates = np.union1d(candidates, _pairs_of(keys))
    result = [
        _checked(found, rows, candidates[at : at + _CHUNK], threshold) for at in range(0, len(candidates), _CHUNK)
    ]
    return np.concatenate(result) if result else np.zeros((0, 2), np.int64)


def _pairs_of(keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Places with equal keys, as smaller << 32 | larger: each with the first of its kind and with the one before."""
    order = np.argsort(keys, kind="stable").astype(np.uint64)
    ordered = keys[order]
    same = np.concatenate([[False], ordered[1:] == ordered[:-1]])
    begins = np.maximum.accumulate(np.where(same, 0, np.arange(len(keys))))
    again = np.flatnonzero(same)
    later, shift = order[again], np.uint64(32)
    return np.concatenate([order[begins[again]] << shift | later, order[again - 1] << shift | later])


def _checked(found: Signatures, rows: Places, candidates: NDArray[np.uint64], threshold: float) -> Places:
    a, b = (
        rows[(candidates >> np.uint64(32)).astype(np.int64)],
        rows[(candidates & np.uint64(2**32 - 1)).astype(np.int64)],
    )
    alike = similarity(np.asarray(found[a]), np.asarray(found[b])) >= threshold
    return np.stack([a[alike], b[alike]], axis=1)


def clusters(count: int, joined: Places) -> Places:
    """(count,) for each of `count` things the least of those that the pairs join it with, directly or by others."""
    parent = list(range(count)) if len(joined) else []

    def root(place: int) -> int:
        while parent[place] != place:
            parent[place] = place = parent[parent[place]]
        return place

    for a, b in joined.tolist():
        a, b = root(a), root(b)
        parent[max(a, b)] = min(a, b)
    result = np.arange(count)
    for place in np.unique(joined).tolist():
        result[place] = root(place)
    return result


def bytes_on_disk(documents: int) -> int:
    """What the signatures of so many documents take."""
    return documents * BYTES

"""Near duplicates: documents whose signatures agree in a whole band, checked, and joined into clusters.

Band by band the keys are sorted; documents with equal keys become pairs, each with the first and with the one before
it; a pair counts if the signatures' estimate of its Jaccard similarity reaches the threshold; pairs are joined by
union-find. `labels` does so out of core: the keys of 14 bands at a time are divided by their last bits among files, of
which each can be sorted within a memory limit, and a pair that is joined already is not looked at again. On disk that
takes 224 bytes a document, as much again as the signatures; arrays of all documents stay in memory. `pairs` and
`clusters` do the same in memory.
"""

from __future__ import annotations

import mmap
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llm_core.data.minhash import BANDS, BYTES, FUNCTIONS, LOOKS, Signatures, band_keys, similarity

MEMORY = 128_000_000
"""Bytes that sorting takes at most, about."""
_ENTRY_BYTES = 80
"""Of memory for each key while it is sorted: key, place, order, and what numpy copies."""
_CHUNK = 1 << 16
_COMPARED = 1 << 9
"""Pairs that are compared at a time: the pages of the file that they touch count as memory of this process."""
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


def labels(file: Path, rank: Places, threshold: float, folder: Path, memory: int = MEMORY) -> Places:
    """(places,) for each place the least of those it is nearly the same as, directly or by others.

    `rank` (rows,) is the place of each row of the signatures in `file`, -1 for rows that are left out, no place twice;
    there are as many labels as the greatest place and one. What is written down on the way goes to `folder`, which is
    made and removed; `memory`: bytes that sorting may take, about.
    """
    count = int(rank.max(initial=-1)) + 1
    parent = np.arange(count)
    row_of = np.full(count, -1, np.int64)
    there = np.flatnonzero(rank >= 0)
    row_of[rank[there]] = there
    parts = max(1, -(-len(there) * _ENTRY_BYTES // memory))
    for first in range(0, LOOKS if len(there) else 0, BANDS):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        _divide(file, rank, range(first, first + BANDS), parts, folder)
        with open(file, "rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            for path in sorted(folder.iterdir()):
                for candidates in _chunks(_pairs_in(path)):
                    _join(parent, _alike(mapped, row_of, _apart(parent, candidates), threshold))
                    mapped.madvise(mmap.MADV_DONTNEED)  # pages that were read would count as memory of this process
                path.unlink()
        shutil.rmtree(folder)
    return _roots(parent, np.arange(count))


def _divide(file: Path, rank: Places, bands: range, parts: int, folder: Path) -> None:
    """Write (key, place) of every row to the file of its band and part; equal keys of a band meet in one file."""
    with open(file, "rb") as opened:
        for at in range(0, len(rank), _CHUNK):
            places = rank[at : at + _CHUNK]
            found = np.fromfile(opened, np.uint16, len(places) * FUNCTIONS).reshape(-1, FUNCTIONS)
            kept = places >= 0
            found, places = found[kept], places[kept].astype(np.uint64)
            for band in bands:
                keys = band_keys(found, band)
                part = (keys % np.uint64(parts)).astype(np.int64)
                order = np.argsort(part, kind="stable")
                entries = np.stack([keys, places], axis=1)[order]
                ends = np.cumsum(np.bincount(part, minlength=parts))
                for number, entry in enumerate(np.split(entries, ends[:-1])):
                    if len(entry):
                        with open(folder / f"{band:02d}-{number:06d}", "ab") as sink:
                            sink.write(entry.tobytes())


def _pairs_in(path: Path) -> Places:
    """(pairs, 2) places with equal keys: each with the first of its kind and with the one before."""
    entries = np.fromfile(path, np.uint64).reshape(-1, 2)
    order = np.lexsort((entries[:, 1], entries[:, 0]))
    keys, places = entries[order, 0], entries[order, 1].astype(np.int64)
    del entries, order
    same = np.concatenate([[False], keys[1:] == keys[:-1]])[: len(keys)]
    begins = np.maximum.accumulate(np.where(same, 0, np.arange(len(keys))))
    again = np.flatnonzero(same)
    firsts, before, later = places[begins[again]], places[again - 1], places[again]
    further = firsts != before
    return np.stack([np.concatenate([before, firsts[further]]), np.concatenate([later, later[further]])], axis=1)


def _chunks(found: Places) -> Iterator[Places]:
    for at in range(0, len(found), _COMPARED):
        yield found[at : at + _COMPARED]


def _roots(parent: Places, places: Places) -> Places:
    """(places,) where the chain of parents from each place ends."""
    found: Places = parent[places]
    while not np.array_equal(further := parent[found], found):
        found = further
    return found


def _apart(parent: Places, candidates: Places) -> Places:
    """The pairs whose two are not joined yet."""
    apart: Places = candidates[_roots(parent, candidates[:, 0]) != _roots(parent, candidates[:, 1])]
    return apart


def _alike(mapped: mmap.mmap, row_of: Places, candidates: Places, threshold: float) -> Places:
    """The pairs whose signatures are at least so alike."""
    found = np.frombuffer(mapped, np.uint16).reshape(-1, FUNCTIONS)
    rows = row_of[candidates]
    alike: Places = candidates[similarity(found[rows[:, 0]], found[rows[:, 1]]) >= threshold]
    return alike


def _join(parent: Places, found: Places) -> None:
    """Union by the least place, with path halving."""
    for a, b in found.tolist():
        while (up := int(parent[a])) != a:
            parent[a] = a = int(parent[up])
        while (up := int(parent[b])) != b:
            parent[b] = b = int(parent[up])
        parent[max(a, b)] = min(a, b)


def bytes_on_disk(documents: int) -> int:
    """What the signatures of so many documents take."""
    return documents * BYTES

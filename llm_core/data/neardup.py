"""Near duplicates: documents whose signatures agree in a whole band, checked, and joined into clusters, out of core.

Band by band the keys are sorted; documents with equal keys become pairs, each with the first and with the one before
it; a pair counts if the signatures' estimate of its Jaccard similarity reaches the threshold; pairs are joined by
union-find. The keys of 14 bands at a time are divided by their last bits among files, of which each can be sorted
within a memory limit, and a pair that is joined already is not looked at again. On disk that takes 224 bytes a
document, as much again as the signatures. In memory stay three numbers a document (24 bytes) and what is sorted.

Signatures are read by `pread`, not through a memory map: whoever maps the file has, page by page, all of it in memory
before long, because the kernel maps whole folios around each page that is touched, and pages of other documents count
as this process's memory.
"""

from __future__ import annotations

import os
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
"""Rows that are read at a time, at least."""
_WRITTEN = 256
"""Keys that are written to a file at a time, about, at least: files are opened for each write."""
_COMPARED = 1 << 12
"""Pairs that are compared at a time."""
Places = NDArray[np.int64]


def labels(file: Path, rank: Places, threshold: float, folder: Path, memory: int = MEMORY) -> Places:
    """(places,) for each place the least of those it is nearly the same as, directly or by others.

    `rank` (rows,) is the place of each row of the signatures in `file`, -1 for rows that are left out, no place twice;
    there are as many labels as the greatest place and one. What is written down on the way goes to `folder`, which is
    made and removed; `memory`: bytes that sorting may take, about.
    """
    count = int(rank.max(initial=-1)) + 1
    parent = np.arange(count)
    row_of = _rows_of(rank, count)
    documents = int((rank >= 0).sum())
    parts = max(1, -(-documents * _ENTRY_BYTES // memory))
    for first in range(0, LOOKS if documents else 0, BANDS):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        _divide(file, rank, range(first, first + BANDS), parts, folder)
        with open(file, "rb", buffering=0) as opened:
            for path in sorted(folder.iterdir()):
                for candidates in _chunks(_pairs_in(path)):
                    _join(parent, _alike(opened.fileno(), row_of, _apart(parent, candidates), threshold))
                path.unlink()
        shutil.rmtree(folder)
    return _roots(parent, np.arange(count))


def _rows_of(rank: Places, count: int) -> Places:
    """(count,) the row of each place, -1 for places without one."""
    row_of = np.full(count, -1, np.int64)
    there = np.flatnonzero(rank >= 0)
    row_of[rank[there]] = there
    return row_of


def _divide(file: Path, rank: Places, bands: range, parts: int, folder: Path) -> None:
    """Write (key, place) of every row to the file of its band and part; equal keys of a band meet in one file."""
    step = max(_CHUNK, _WRITTEN * parts)
    with open(file, "rb") as opened:
        for at in range(0, len(rank), step):
            places = rank[at : at + step]
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


def _alike(file: int, row_of: Places, candidates: Places, threshold: float) -> Places:
    """The pairs whose signatures in the open `file` are at least so alike."""
    rows = row_of[candidates]
    first, second = _signatures(file, rows[:, 0]), _signatures(file, rows[:, 1])
    alike: Places = candidates[similarity(first, second) >= threshold]
    return alike


def _signatures(file: int, rows: Places) -> Signatures:
    """(rows, 112) signatures by their rows in the open file. Raises `EOFError` if it ends before."""
    found = b"".join(os.pread(file, BYTES, row * BYTES) for row in rows.tolist())
    if len(found) != len(rows) * BYTES:
        raise EOFError("the file of signatures is shorter than its index says")
    return np.frombuffer(found, np.uint16).reshape(-1, FUNCTIONS)


def _join(parent: Places, found: Places) -> None:
    """Union by the least place, with path halving."""
    for a, b in found.tolist():
        while (up := int(parent[a])) != a:
            parent[a] = a = int(parent[up])
        while (up := int(parent[b])) != b:
            parent[b] = b = int(parent[up])
        parent[max(a, b)] = min(a, b)

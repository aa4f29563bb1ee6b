"""Duplicates: which copy of a document stays, and lines and paragraphs that an earlier document already had.

Of several copies the longest stays; of equally long ones the first by source, URL and content. That is decided from the
index alone, after all documents were seen, so it depends on nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import xxhash
from numpy.typing import NDArray

from llm_core.data.codepoints import mixed
from llm_core.data.minhash import BYTES
from llm_core.data.neardup import labels

SHORTEST_PARAGRAPH = 100
"""Characters: shorter paragraphs, such as signatures, are alike because language is."""
SHORTEST_LINE = 20
"""Characters: shorter lines, such as headings, are alike because language is."""
MOST_AT_ONCE = 4_000_000
"""Records that are sorted at a time; more are divided by their keys."""
REASONS = ("duplicate_url", "duplicate", "near_duplicate")
_PARAGRAPHS = re.compile(r"\n{2,}")
Places = NDArray[np.int64]


class Hashes:
    """A set of 64-bit hashes that takes 8 bytes each, 24 for a moment while it grows.

    New ones wait in a small set; full, it becomes a sorted array, and arrays of like size are merged. Two different
    texts with one hash are taken for the same: among 20 million, once in 90,000 runs.
    """

    def __init__(self, waiting: int = 1 << 15) -> None:
        self._arrays: list[NDArray[np.uint64]] = []
        self._new: set[int] = set()
        self._most = waiting

    def __len__(self) -> int:
        return len(self._new) + sum(map(len, self._arrays))

    def add(self, key: int) -> bool:
        """Remember a hash; False if it was known."""
        if key in self._new or any(_holds(array, np.uint64(key)) for array in self._arrays):
            return False
        self._new.add(key)
        if len(self._new) >= self._most:
            self._settle()
        return True

    def _settle(self) -> None:
        array = np.sort(np.fromiter(self._new, np.uint64, len(self._new)))
        self._new.clear()
        while self._arrays and len(self._arrays[-1]) <= 2 * len(array):
            array = np.sort(np.concatenate([self._arrays.pop(), array]), kind="stable")
        self._arrays.append(array)


def _holds(array: NDArray[np.uint64], key: np.uint64) -> bool:
    place = int(array.searchsorted(key))
    return place < len(array) and array[place] == key


class Pieces:
    """Removes paragraphs or lines that came before, in this document or an earlier one of the same source."""

    def __init__(self, *, lines: bool = False) -> None:
        self._known = Hashes()
        self._shortest = SHORTEST_LINE if lines else SHORTEST_PARAGRAPH
        self._lines = lines
        self.removed = 0

    def fresh(self, text: str) -> str:
        """The text without the pieces that are long enough and known already, white space aside."""
        kept = []
        for piece in text.split("\n") if self._lines else _PARAGRAPHS.split(text):
            squeezed = " ".join(piece.split())
            if len(squeezed) >= self._shortest and not self._known.add(
                xxhash.xxh3_64_intdigest(squeezed.encode("utf-8", "surrogatepass"))
            ):
                self.removed += 1
                continue
            kept.append(piece)
        return _PARAGRAPHS.sub("\n\n", "\n".join(kept)).strip("\n") if self._lines else "\n\n".join(kept)


@dataclass(frozen=True)
class Index:
    """What is compared between records, in the order of the corpus: one entry a record, its place being its number."""

    source: NDArray[np.int32]
    size: NDArray[np.int32]
    identity: NDArray[np.uint64]
    """(records, 2) halves of the id."""
    address: NDArray[np.uint64]
    signature: Places
    """Row of the signature file, -1 for none."""

    @staticmethod
    def of(table: pa.Table, signature: Places) -> Index:
        """From the columns of an index table."""
        halves = [table["id_high"].to_numpy(), table["id_low"].to_numpy()]
        source, size, address = (table[name].to_numpy() for name in ("source", "size", "address"))
        return Index(source, size, np.stack(halves, axis=1), address, signature)


class Duplicates:
    """Which records are copies of which. `of[place]` is the record that stays in its stead, -1 if it stays itself.

    Nine bytes a record, however many of them are copies.
    """

    def __init__(self, index: Index) -> None:
        self._index = index
        self.of: Places = np.full(len(index.source), -1, np.int64)
        self._why = np.full(len(index.source), -1, np.int8)

    def by_address(self, places: Places) -> Places:
        """Drop documents whose canonical URL another source has in a better copy; returns the places that are left.

        Within a source rows may share a URL: they are parts of one page.
        """
        index = self._index
        some = places[index.address[places] != 0]
        for part in _divided(some, index.address[some]):
            best = self._best(part, index.address[part])
            lost = index.source[part] != index.source[best]
            self._drop(part[lost], best[lost], "duplicate_url")
        return self._left(places)

    def by_identity(self, places: Places) -> Places:
        """Drop documents that say the same, case and white space aside."""
        for part in _divided(places, self._index.identity[places, 1]):
            halves = self._index.identity[part]
            _, label = np.unique(halves[:, 0] ^ (halves[:, 1] * np.uint64(0x9E3779B97F4A7C15)), return_inverse=True)
            best = self._best(part, label)
            lost = (best != part) & (halves == self._index.identity[best]).all(axis=1)
            self._drop(part[lost], best[lost], "duplicate")
        return self._left(places)

    def by_likeness(self, places: Places, file: Path, threshold: float) -> Places:
        """Drop documents that are nearly the same, by the signatures in `file`."""
        signed = places[self._index.signature[places] >= 0]
        rank = np.full(file.stat().st_size // BYTES, -1, np.int64)
        rank[self._index.signature[signed]] = signed
        label = labels(file, rank, threshold, file.with_name("bands"))[signed]
        for part in _divided(np.arange(len(signed)), label.astype(np.uint64)):
            best = self._best(signed[part], label[part])
            lost = best != signed[part]
            self._drop(signed[part][lost], best[lost], "near_duplicate")
        return self._left(places)

    def reason(self, place: int) -> str | None:
        """Why a record is dropped; None if it stays."""
        why = self._why[place]
        return REASONS[why] if why >= 0 else None

    def leaders(self) -> Places:
        """(records,) the record that stays, for each copy and for what stays itself; -1 for records without copies."""
        last, lost = self.of.copy(), np.flatnonzero(self.of >= 0)
        while len(moved := lost[last[last[lost]] >= 0]):
            last[moved] = last[last[moved]]
        last[last[lost]] = last[lost]
        return last

    def identity(self, place: int) -> str:
        """The hex id of a record."""
        high, low = self._index.identity[place].tolist()
        return f"{high:016x}{low:016x}"

    def _best(self, places: Places, label: NDArray[np.generic]) -> Places:
        """(places,) the best of those with the same label: the longest, then the first."""
        order = np.lexsort((places, -self._index.size[places].astype(np.int64), label))
        ordered = label[order]
        begins = np.concatenate([[True], ordered[1:] != ordered[:-1]])[: len(order)]
        firsts = np.maximum.accumulate(np.where(begins, np.arange(len(order)), 0))
        best = np.empty_like(places)
        best[order] = places[order[firsts]]
        return best

    def _drop(self, lost: Places, best: Places, reason: str) -> None:
        self.of[lost] = best
        self._why[lost] = REASONS.index(reason)

    def _left(self, places: Places) -> Places:
        return places[self.of[places] < 0]


def _divided(places: Places, key: NDArray[np.uint64]) -> Iterator[Places]:
    """The places in parts of a size that can be sorted at once, equal keys in one part."""
    parts = -(-len(places) // MOST_AT_ONCE)
    if parts == 1:
        yield places
    elif parts:
        part = (mixed(key) % np.uint64(parts)).astype(np.uint32)
        order = np.argsort(part, kind="stable")
        yield from np.split(places[order], np.cumsum(np.bincount(part, minlength=parts))[:-1])

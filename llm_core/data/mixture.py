"""Weights of sources: how often each document stands in the training stream, and which the tokenizer is trained on.

Every choice follows from a document's id alone, so that it depends neither on the order of the documents, nor on the
number of workers, nor on what else is in the corpus; and what a weight takes, a larger weight takes too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from llm_core.data.streams import Run, chosen_runs

Array = npt.NDArray[Any]


def place_of(purpose: str, key: str) -> float:
    """Where in [0, 1) a document stands for this purpose, by its id alone (xxh3-64)."""
    return xxhash.xxh3_64_intdigest(f"{purpose} {key}".encode("utf-8", "surrogatepass")) / 2**64


def copies(key: str, weight: float) -> int:
    """How often a document stands in the training stream: 2.5 is twice, and a third time for half of the documents."""
    whole = int(weight)
    return whole + (weight > whole and place_of("repeat", key) < weight - whole)


@dataclass(frozen=True, slots=True)
class Sample:
    """A part of the weighted stream, by documents' places: copy k of a document stands at (place + k) / weight.

    Copies before `limit` are in it, and the first `rest` bytes of the one at `limit`; `size` is its bytes in all.
    """

    limit: float = 1.0
    rest: int = 0
    size: int = 0

    def take(self, key: str, weight: float, texts: Sequence[str]) -> Iterator[str]:
        """The texts of a document, once for each of its copies in the sample."""
        place = place_of("sample", key)
        for copy in range(ceil(weight)):
            at = (place + copy) / weight
            if at >= 1.0 or at > self.limit:
                return
            if at < self.limit:
                yield from texts
            else:
                yield from _first_bytes(texts, self.rest)


def _first_bytes(texts: Sequence[str], most: int) -> Iterator[str]:
    for text in texts:
        part = text.encode("utf-8", "replace")[:most]
        most -= len(part)
        if part:
            yield part.decode("utf-8", "ignore")


def choose(place: Array, size: Array, weight: Array, most_bytes: int) -> Sample:
    """`most_bytes` bytes of documents [n] that stand at `place` and have `size` bytes; all if they are fewer."""
    everything = sum(int(sizes.sum()) for _, sizes in _standing(place, size, weight, 1.0))
    if everything <= most_bytes:
        return Sample(size=everything)
    likely = list(_standing(place, size, weight, min(1.0, 2 * most_bytes / everything)))  # sorting all takes memory
    if sum(int(sizes.sum()) for _, sizes in likely) <= most_bytes:
        likely = list(_standing(place, size, weight, 1.0))
    positions = np.concatenate([positions for positions, _ in likely])
    order = np.argsort(positions, kind="stable")
    total = np.cumsum(np.concatenate([sizes for _, sizes in likely])[order])
    first = int(np.searchsorted(total, most_bytes, side="right"))
    rest = most_bytes - (int(total[first - 1]) if first else 0)
    return Sample(float(positions[order[first]]), rest, most_bytes)


def _standing(place: Array, size: Array, weight: Array, below: float) -> Iterator[tuple[Array, Array]]:
    """(where they stand, their sizes) of the first copies of documents, of the second and so on, as far as `below`."""
    for copy in range(ceil(weight.max()) if len(weight) else 0):
        if copy:
            there = weight > copy
            place, size, weight = place[there], size[there], weight[there]
        positions = (place + copy) / weight
        chosen = positions < below
        yield positions[chosen], size[chosen]


@dataclass(frozen=True, slots=True)
class Part:
    """Encoded documents of one source and split: ids one after the other, the `lengths` [n] of the documents.

    `more` [n] says which of them stand once more than the whole part of the weight; `text_bytes` and `more_bytes` are
    the UTF-8 bytes of all and of those.
    """

    source: str
    split: str
    ids: Array
    lengths: Array
    more: Array
    text_bytes: int
    more_bytes: int


@dataclass(frozen=True, slots=True)
class LaidPart:
    """A part whose ids were laid down in `file` from `offset` on; the rest as in `Part`."""

    source: str
    split: str
    file: str
    offset: int
    lengths: Array
    more: Array
    text_bytes: int
    more_bytes: int


@dataclass(frozen=True, slots=True)
class Stream:
    """One split, ready to be written: runs of its ids, the `lengths` [n] of its documents, counts for the manifest."""

    runs: list[Run]
    lengths: Array
    facts: dict[str, Any]


class Mixture:
    """The stream of one split, source by source: all of a source, as often as its weight says, then the next.

    A source's repeats are passes over all of it, so that the copies of a document stand far apart.
    """

    def __init__(self, dtype: str, weights: Mapping[str, float]) -> None:
        self._item, self._weights = np.dtype(dtype).itemsize, weights
        self._sources: dict[str, list[LaidPart]] = {}

    def add(self, part: LaidPart) -> None:
        """Put the documents of a part behind those of its source that came before."""
        self._sources.setdefault(part.source, []).append(part)

    def stream(self) -> Stream:
        """What is to be written."""
        runs: list[Run] = []
        lengths: list[Array] = [np.zeros(0, "u4")]
        ranges: dict[str, list[int]] = {}
        mixture: dict[str, dict[str, Any]] = {}
        documents = tokens = 0
        for source, parts in sorted(self._sources.items()):
            weight = self._weights.get(source, 1.0)
            counts = _counted(parts, weight)
            ranges[source] = [documents, documents + counts["stream_documents"]]
            mixture[source] = {"weight": weight, **counts}
            documents, tokens = documents + counts["stream_documents"], tokens + counts["stream_tokens"]
            for _ in range(int(weight)):
                runs += [(part.file, part.offset, int(part.lengths.sum()) * self._item) for part in parts]
                lengths += [part.lengths for part in parts]
            for part in parts:
                if part.more.any():
                    runs += chosen_runs(part.file, part.offset, part.lengths, part.more, self._item)
                    lengths.append(part.lengths[part.more])
        size = sum(entry["stream_bytes"] for entry in mixture.values())
        facts = {"documents": documents, "tokens": tokens, "bytes": size, "sources": ranges, "mixture": mixture}
        return Stream(runs, np.concatenate(lengths), facts)


def _counted(parts: Sequence[LaidPart], weight: float) -> dict[str, int]:
    passes = int(weight)
    tokens = sum(int(part.lengths.sum()) for part in parts)
    size = sum(part.text_bytes for part in parts)
    documents = sum(len(part.lengths) for part in parts)
    more = sum(int(part.more.sum()) for part in parts)
    more_tokens = sum(int(part.lengths[part.more].sum()) for part in parts)
    return {
        "documents": documents,
        "tokens": tokens,
        "bytes": size,
        "stream_documents": passes * documents + more,
        "stream_tokens": passes * tokens + more_tokens,
        "stream_bytes": passes * size + sum(part.more_bytes for part in parts),
    }

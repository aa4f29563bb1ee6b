"""Weights of sources: how often each document stands in the training stream, and which the tokenizer is trained on.

Every choice follows from a document's id alone, so that it depends neither on the order of the documents, nor on the
number of workers, nor on what else is in the corpus; and what a weight takes, a larger weight takes too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from llm_core.data.shards import ShardWriter

Array = npt.NDArray[Any]
CHUNK_TOKENS = 4_000_000


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


@dataclass(slots=True)
class _Gathered:
    path: Path
    lengths: list[Array] = field(default_factory=list)
    more: list[Array] = field(default_factory=list)
    text_bytes: int = 0
    more_bytes: int = 0


class MixtureWriter:
    """The stream of one split, written source by source: all of a source, as often as its weight says, then the next.

    Documents are gathered in one file a source beside the stream, which `close` removes. A source's repeats are passes
    over all of it, so that the copies of a document stand far apart.
    """

    def __init__(self, folder: Path, split: str, dtype: str, weights: Mapping[str, float]) -> None:
        self._folder, self._split, self._dtype, self._weights = folder, split, dtype, weights
        self._sources: dict[str, _Gathered] = {}

    def add(self, part: Part) -> None:
        """Put the documents of a part behind those of its source that came before."""
        path = self._folder / f".{self._split}-{len(self._sources)}.ids"
        gathered = self._sources.setdefault(part.source, _Gathered(path))
        with gathered.path.open("ab") as file:
            file.write(part.ids.tobytes())
        gathered.lengths.append(part.lengths)
        gathered.more.append(part.more)
        gathered.text_bytes += part.text_bytes
        gathered.more_bytes += part.more_bytes

    def close(self) -> dict[str, Any]:
        """Write the stream; its counts, for the manifest."""
        writer = ShardWriter(self._folder, self._split, self._dtype)
        ranges, mixture = {}, {}
        for source, gathered in sorted(self._sources.items()):
            first, tokens = writer.sequences, writer.tokens
            weight = self._weights.get(source, 1.0)
            lengths, more = np.concatenate(gathered.lengths), np.concatenate(gathered.more)
            for _ in range(int(weight)):
                self._copy(gathered.path, lengths, None, writer)
            if more.any():
                self._copy(gathered.path, lengths, more, writer)
            gathered.path.unlink()
            ranges[source] = [first, writer.sequences]
            mixture[source] = {
                "weight": weight,
                "documents": len(lengths),
                "tokens": int(lengths.sum()),
                "bytes": gathered.text_bytes,
                "stream_documents": writer.sequences - first,
                "stream_tokens": writer.tokens - tokens,
                "stream_bytes": int(weight) * gathered.text_bytes + gathered.more_bytes,
            }
        writer.close()
        size = sum(entry["stream_bytes"] for entry in mixture.values())
        counts = {"documents": writer.sequences, "tokens": writer.tokens, "bytes": size}
        return {**counts, "sources": ranges, "mixture": mixture}

    def _copy(self, path: Path, lengths: Array, chosen: Array | None, writer: ShardWriter) -> None:
        """Append all documents of a file, or the chosen ones, a few million tokens at a time."""
        ends = np.cumsum(lengths, dtype=np.int64)
        first = 0
        with path.open("rb") as file:
            while first < len(lengths):
                before = int(ends[first - 1]) if first else 0
                stop = max(first + 1, int(np.searchsorted(ends, before + CHUNK_TOKENS, side="right")))
                ids = np.fromfile(file, dtype=self._dtype, count=int(ends[stop - 1]) - before)
                part = lengths[first:stop]
                if chosen is not None:
                    ids, part = ids[np.repeat(chosen[first:stop], part)], part[chosen[first:stop]]
                writer.extend(ids, part)
                first = stop

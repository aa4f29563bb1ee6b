"""Decontamination: which documents hold a piece of an evaluation set.

As GPT-3 (Brown et al. 2020) and FineWeb's evaluation do, a piece is 13 words in a row, letters and digits alone, in
lower case. Items of fewer words are looked for whole if they have at least 8. GPT-3 cut the piece and 200 characters on
either side out of a document; here the whole document is dropped: pages are short, there are more of them, and what
stands around a question on a page is often its answer. Templates (a piece that more than 20 items of a set share, such
as the instruction before each question) are not looked for.

Words of a text are hashed in numpy, runs of them by one subtraction each (`codepoints`), and looked up in a table of
bits first; what is found there is compared word by word, so that a hit is never an accident of hashing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from llm_core.contract import BadInput
from llm_core.data.codepoints import KNOWN, U64, Stretches, chunks, code_points, mixed, tables
from llm_core.data.document import texts_in
from llm_core.data.packed import gunzipped

N, SHORTEST, TEMPLATE_ITEMS = 13, 8, 20
IntArray = NDArray[np.intp]
SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".txt", ".txt.gz", ".parquet")
_FIELD = "clean.decontamination.fields"


@dataclass(frozen=True, slots=True)
class Hit:
    """A piece of an evaluation set in a document: the set's file name, the item's number from 0, the words."""

    set: str
    item: str
    words: str


def evaluation_files(folder: Path) -> list[Path]:
    """The evaluation sets in a folder, by name; README.md and hidden files are none. Raises `BadInput` for others."""
    paths = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    paths = [path for path in paths if path.name != "README.md"]
    if wrong := [path for path in paths if not path.name.endswith(SUFFIXES)]:
        raise BadInput(f"{wrong[0]}: an evaluation set is a file of the kind {', '.join(SUFFIXES)}")
    return paths


@dataclass(frozen=True)
class _Table:
    """Pieces of one length: their hashes in order, whose each is, and a table of bits that most text does not pass."""

    hashes: U64
    owners: NDArray[np.int32]
    starts: NDArray[np.int32]
    bits: NDArray[np.bool_]
    shift: np.uint64

    @classmethod
    def of(cls, hashes: U64, owners: IntArray, starts: IntArray) -> _Table:
        """Of equal pieces the first stays."""
        unique, first = np.unique(hashes, return_index=True)
        size = max(16, int(8 * len(unique)).bit_length())
        shift = np.uint64(64 - size)
        bits = np.zeros(1 << size, np.bool_)
        bits[unique >> shift] = True
        return cls(unique, owners[first].astype(np.int32), starts[first].astype(np.int32), bits, shift)

    def find(self, hashes: U64) -> tuple[IntArray, IntArray]:
        """(places in `hashes` that are known, the entries they equal)."""
        cells = (hashes >> self.shift).view(np.int64)
        places = np.flatnonzero(self.bits.take(cells, mode="clip"))  # never out of bounds: "clip" spares the check
        if not len(places):
            return places, places
        entries = np.minimum(np.searchsorted(self.hashes, hashes[places]), len(self.hashes) - 1)
        equal = self.hashes[entries] == hashes[places]
        return places[equal], entries[equal]


class Index:
    """The pieces of evaluation sets, to be asked about texts. It can be sent to other processes."""

    def __init__(self, items: Sequence[tuple[str, str, str]], n: int = N, shortest: int = SHORTEST) -> None:
        """`items`: (set, item, text)."""
        self._items = items
        by_length: dict[int, list[tuple[U64, IntArray, IntArray]]] = {}
        for first, last in chunks([text for _, _, text in items]):
            words = _Words([text for _, _, text in items[first:last]])
            for length in range(min(shortest, n), n + 1):
                hashes = words.runs(length)
                owners, starts = words.whose(np.arange(len(hashes)))
                left = words.counts[owners] - starts
                kept = (starts == 0) & (left == length) if length < n else left >= length
                if kept.any():
                    entries = (hashes[kept], owners[kept] + first, starts[kept])
                    by_length.setdefault(length, []).append(entries)
        self._tables = {length: self._table(parts) for length, parts in sorted(by_length.items())}

    def __bool__(self) -> bool:
        return bool(self._tables)

    def __len__(self) -> int:
        """How many different pieces are looked for."""
        return sum(len(table.hashes) for table in self._tables.values())

    @classmethod
    def build(
        cls,
        paths: Sequence[Path],
        *,
        n: int = N,
        shortest: int = SHORTEST,
        fields: Mapping[str, Sequence[str]] | None = None,
    ) -> Index:
        """The index of evaluation files; `fields`, by file name, are those looked for, else all text.

        Raises `BadInput` for a file that cannot be read, or fields that are not there.
        """
        fields = fields or {}
        if unknown := sorted(set(fields) - {path.name for path in paths}):
            raise BadInput(f"{_FIELD}: there is no evaluation set {unknown[0]!r}")
        found = [
            (path.name, str(number), text)
            for path in paths
            for number, texts in enumerate(_items_of(path, fields.get(path.name, ())))
            for text in texts
        ]
        return cls(found, n, shortest)

    def hits(self, text: str) -> list[Hit]:
        """The first piece of each item that the text holds, in the order of the text."""
        return self.hits_of([text])[0]

    def hits_of(self, texts: Sequence[str]) -> list[list[Hit]]:
        """The hits of each text: about three times as fast as asking for one text of a few kilobytes at a time."""
        found: list[dict[tuple[str, str], tuple[int, Hit]]] = [{} for _ in texts]
        for first, last in chunks(texts) if self._tables else ():
            words = _Words(texts[first:last])
            for length, table in self._tables.items():
                places, entries = table.find(words.runs(length))
                owners, starts = words.whose(places)
                for text, start, entry in zip(owners.tolist(), starts.tolist(), entries.tolist(), strict=True):
                    if self._items[table.owners[entry]][:2] in found[first + text]:
                        continue
                    spelled = words.spelled(text, start, min(length, int(words.counts[text]) - start))
                    hit = self._hit(table, entry, spelled) if len(spelled) == length else None
                    if hit is not None:
                        found[first + text].setdefault((hit.set, hit.item), (start, hit))
        return [[hit for _, hit in sorted(hits.values(), key=lambda pair: pair[0])] for hits in found]

    def _hit(self, table: _Table, entry: int, spelled: list[str]) -> Hit | None:
        name, item, text = self._items[table.owners[entry]]
        same = _Words([text]).spelled(0, int(table.starts[entry]), len(spelled)) == spelled
        return Hit(name, item, " ".join(spelled)) if same else None

    def _table(self, parts: list[tuple[U64, IntArray, IntArray]]) -> _Table:
        hashes, owners, starts = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        templates = self._templates(hashes, owners)
        if len(templates):
            kept = ~np.isin(hashes, templates)
            hashes, owners, starts = hashes[kept], owners[kept], starts[kept]
        return _Table.of(hashes, owners, starts)

    def _templates(self, hashes: U64, owners: IntArray) -> U64:
        """Hashes of pieces that too many items of one set share."""
        unique, counts = np.unique(hashes, return_counts=True)
        often = unique[counts > TEMPLATE_ITEMS]
        items: dict[tuple[int, str], set[str]] = {}
        for place in np.flatnonzero(np.isin(hashes, often)).tolist() if len(often) else ():
            name, item, _ = self._items[owners[place]]
            items.setdefault((int(hashes[place]), name), set()).add(item)
        return np.array([piece for (piece, _), found in items.items() if len(found) > TEMPLATE_ITEMS], np.uint64)


class _Runs(Stretches):
    """Hashes of all stretches of one length."""

    def windows(self, length: int) -> U64:
        """(values - length + 1,) what `hashes` gives for each stretch of that length."""
        total = len(self._prefix) - length
        if total <= 0:
            return np.zeros(0, np.uint64)
        result: U64 = (self._prefix[length:] - self._prefix[:total]) * self._inverse[:total]
        return result


class _Words:
    """The words of texts, hashed: runs of letters, digits and marks; in scripts without spaces each letter is one."""

    def __init__(self, texts: Sequence[str]) -> None:
        joined = "\n".join(texts)
        points = code_points(joined)
        table = tables()
        known = np.minimum(points, KNOWN - 1).view(np.int32)
        values = table.folded.take(known, mode="clip")
        inside, alone = np.zeros((2, len(points) + 2), np.bool_)
        if not joined.isascii():
            rare = points >= KNOWN
            alone[1:-1] = table.alone.take(known, mode="clip") | rare
            values = np.where(rare, mixed(points.astype(np.uint64)), values)
        middle = inside[1:-1]
        middle[:] = values != 0
        self._text = joined
        self._starts = np.flatnonzero(middle & (~inside[:-2] | alone[1:-1] | alone[:-2]))
        self._ends = np.flatnonzero(middle & (~inside[2:] | alone[1:-1] | alone[2:])) + 1
        self._runs = _Runs(mixed(Stretches(values).hashes(self._starts, self._ends)))
        begins = np.cumsum([0, *(len(text) + 1 for text in texts)])
        self._first = np.searchsorted(self._starts, begins)
        self.counts = np.diff(self._first)
        """(texts,) words in each text."""

    def runs(self, length: int) -> U64:
        """(words - length + 1,) a hash of each run of `length` words, those across the end of a text included."""
        return self._runs.windows(length)

    def whose(self, places: IntArray) -> tuple[IntArray, IntArray]:
        """(text, word in the text) of words."""
        texts = np.searchsorted(self._first, places, side="right") - 1
        return texts, places - self._first[texts]

    def spelled(self, text: int, start: int, count: int) -> list[str]:
        """`count` words of a text, in lower case."""
        first = int(self._first[text]) + start
        bounds = zip(self._starts[first : first + count], self._ends[first : first + count], strict=True)
        return [self._text[begin:end].lower() for begin, end in bounds]


def _items_of(path: Path, fields: Sequence[str]) -> Iterator[list[str]]:
    """The texts of each item of a file."""
    try:
        if path.name.endswith((".txt", ".txt.gz")):
            yield from ([part] for part in _read(path).split("\n\n") if part.strip())
            return
        missing = set(fields)
        for row in _rows(path):
            missing -= row.keys() if isinstance(row, dict) else set()
            chosen = {name: row.get(name) for name in fields} if fields and isinstance(row, dict) else row
            yield list(texts_in(chosen))
    except (OSError, EOFError, UnicodeDecodeError, json.JSONDecodeError, pa.ArrowException) as error:
        raise BadInput(f"{path}: cannot be read as an evaluation set: {error}") from error
    if missing:
        raise BadInput(f"{_FIELD}: {path.name} has no field {sorted(missing)[0]!r}")


def _rows(path: Path) -> Iterator[Any]:
    if path.suffix == ".parquet":
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(1_000):
                yield from batch.to_pylist()
    elif path.suffix == ".json":
        data = json.loads(_read(path))
        yield from data if isinstance(data, list) else [data]
    else:
        yield from (json.loads(line) for line in _read(path).splitlines() if line.strip())


def _read(path: Path) -> str:
    data = path.read_bytes()
    return (gunzipped(data) if path.suffix == ".gz" else data).decode("utf-8-sig")

"""What a worker of `tokenize` does: read a slice of the corpus, encode it, count. Importable without a stage."""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from llm_core.contract import BadInput
from llm_core.data import dialogue
from llm_core.data.bpe import Tokenizer
from llm_core.data.kit import Kit
from llm_core.data.mixture import LaidPart, Part, copies, place_of
from llm_core.data.reading import Slice, read
from llm_core.data.shards import KINDS, SPLITS, dtype_for
from llm_core.data.streams import Run, lay
from llm_core.storage.places import Place

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Plan:
    """What is alike for all slices.

    `tokenizer`, `reference`: folders with a tokenizer in tiktoken's format, and the digest that tells it from another
    at the same path. `compared`: for each source the split and the limit of the documents that `reference` encodes too.
    """

    tokenizer: tuple[Path, str]
    weights: Mapping[str, float] = field(default_factory=dict)
    reference: tuple[Path, str] | None = None
    compared: Mapping[str, tuple[str, float]] = field(default_factory=dict)


@dataclass(slots=True)
class Comparison:
    """UTF-8 bytes of texts, and the tokens that two tokenizers make of them."""

    text_bytes: int = 0
    tokens: int = 0
    reference_tokens: int = 0

    def add(self, other: Comparison) -> None:
        """Add the counts of further texts."""
        self.text_bytes += other.text_bytes
        self.tokens += other.tokens
        self.reference_tokens += other.reference_tokens


@dataclass(slots=True)
class Encoded:
    """A slice of documents. `uses` [vocabulary]: how often each id occurs in the training documents, repeats apart."""

    parts: list[Part]
    uses: Array
    text_bytes: int
    empty: int
    compared: dict[str, Comparison]


@dataclass(frozen=True, slots=True)
class Laid:
    """What a worker found in a slice of documents, its ids laid down; the rest as in `Encoded`."""

    parts: list[LaidPart]
    uses: Array
    text_bytes: int
    empty: int
    compared: dict[str, Comparison]


@dataclass(frozen=True, slots=True)
class Job:
    """A slice to encode, where its ids are laid down, and what brings the tokenizer where its folder is not seen."""

    piece: Slice
    plan: Plan
    place: Place
    kit: Kit | None = None

    def settled(self) -> tuple[Slice, Plan]:
        """The slice and the plan as they are where this is asked."""
        return self.piece, self.kit.settled(self.plan) if self.kit else self.plan


@dataclass(slots=True)
class Conversations:
    """Dialogues of one split of a slice: ids and mask one after the other, `lengths` and `kinds` [n]."""

    split: str
    ids: Array
    mask: Array
    lengths: Array
    kinds: Array


@lru_cache(2)
def _load(folder: Path, digest: str) -> Tokenizer:  # noqa: ARG001  (it tells one tokenizer at a path from the next)
    return Tokenizer.load_tiktoken(folder)


class _Gathering:
    """Documents of one source and split, packed as they come: the encoder's own arrays are freed at once."""

    def __init__(self, dtype: str, end_id: int) -> None:
        self._ids, self._end, self._end_id = np.empty(1 << 16, dtype=dtype), 0, end_id
        self._lengths, self._more = array("L"), array("b")
        self._text_bytes, self._more_bytes = 0, 0

    def add(self, ids: Array, size: int, more: bool) -> None:
        stop = self._end + len(ids)
        if stop >= len(self._ids):
            self._ids = np.resize(self._ids, 2 * (stop + 1))
        self._ids[self._end : stop] = ids
        self._ids[stop] = self._end_id
        self._lengths.append(stop + 1 - self._end)
        self._more.append(more)
        self._end = stop + 1
        self._text_bytes += size
        if more:
            self._more_bytes += size

    def part(self, source: str, split: str) -> Part:
        lengths, more = np.asarray(self._lengths, dtype="u4"), np.asarray(self._more, dtype=bool)
        return Part(source, split, self._ids[: self._end], lengths, more, self._text_bytes, self._more_bytes)


def encode_documents(job: tuple[Slice, Plan]) -> Encoded:
    """Encode the documents of a slice, each with the end token behind it; empty ones are counted and left out."""
    piece, plan = job
    tokenizer = _load(*plan.tokenizer)
    dtype = dtype_for(tokenizer.vocab_size)
    found: dict[tuple[str, str], _Gathering] = defaultdict(lambda: _Gathering(dtype, tokenizer.end_id))
    compared: dict[str, Comparison] = defaultdict(Comparison)
    total, empty = 0, 0
    for batch in read(piece, ("id", "source", "split", "text")):
        sizes = pc.fill_null(pc.binary_length(batch.column("text")), 0)
        columns = [batch.column(name).to_pylist() for name in ("id", "source", "split", "text")]
        for key, source, split, text, size in zip(*columns, sizes.to_pylist(), strict=True):
            total += size
            weight = plan.weights.get(source, 1.0) if split == "train" else 1.0
            times = 1 if weight == 1.0 else copies(key, weight)
            if not times or split not in SPLITS:
                continue
            if not text:
                empty += 1
                continue
            ids = tokenizer.encode_array(text)
            found[source, split].add(ids, size, times > int(weight))
            if plan.reference is not None and _is_compared(plan, key, source, split):
                reference = _load(*plan.reference).encode_array(text)
                compared[source].add(Comparison(size, len(ids), len(reference)))
    parts = [gathering.part(source, split) for (source, split), gathering in found.items()]
    uses = _uses([part.ids for part in parts if part.split == "train"], tokenizer)
    return Encoded(parts, uses, total, empty, dict(compared))


def lay_documents(job: Job) -> Laid:
    """Encode the documents of a slice and lay their ids down."""
    found = encode_documents(job.settled())
    name, begins = lay(job.place, [part.ids for part in found.parts]) if found.parts else ("", [])
    parts = [
        LaidPart(part.source, part.split, name, at, part.lengths, part.more, part.text_bytes, part.more_bytes)
        for part, at in zip(found.parts, begins, strict=True)
    ]
    return Laid(parts, found.uses, found.text_bytes, found.empty, found.compared)


def _is_compared(plan: Plan, key: str, source: str, split: str) -> bool:
    wanted, limit = plan.compared.get(source, ("", 0.0))
    return split == wanted and place_of("sample", key) <= limit


def _uses(pieces: Sequence[Array], tokenizer: Tokenizer) -> Array:
    uses = np.zeros(tokenizer.vocab_size, dtype=np.int64)
    for ids in pieces:
        uses += np.bincount(ids, minlength=tokenizer.vocab_size)
    return uses


@dataclass(frozen=True, slots=True)
class LaidConversations:
    """Dialogues of one split of a slice: runs of their ids and masks, and their lengths and kinds [n]."""

    split: str
    ids: Run
    mask: Run
    lengths: Array
    kinds: Array


def lay_dialogues(job: Job) -> tuple[list[LaidConversations], Array]:
    """Encode the dialogues of a slice and lay them down; how often each id occurs as in `encode_dialogues`."""
    found, uses = encode_dialogues(job.settled())
    arrays = [array for part in found for array in (part.ids, part.mask)]
    name, begins = lay(job.place, arrays)
    runs: list[Run] = [(name, at, array.nbytes) for at, array in zip(begins, arrays, strict=True)]
    laid = [
        LaidConversations(part.split, runs[2 * number], runs[2 * number + 1], part.lengths, part.kinds)
        for number, part in enumerate(found)
    ]
    return laid, uses


def encode_dialogues(job: tuple[Slice, Plan]) -> tuple[list[Conversations], Array]:
    """The dialogues of a slice by split, and how often each id occurs in those of the training split [vocabulary].

    Raises `BadInput` for a kind of dialogue that shards have no number for.
    """
    piece, plan = job
    tokenizer = _load(*plan.tokenizer)
    dtype = dtype_for(tokenizer.vocab_size)
    found: dict[str, tuple[list[int], list[int], list[int], list[int]]] = {split: ([], [], [], []) for split in SPLITS}
    for batch in read(piece, ("split", "kind", "messages")):
        for row in batch.to_pylist():
            if row["split"] not in found or not row["messages"]:
                continue
            if row["kind"] not in KINDS:
                raise BadInput(f"{piece.name}: a dialogue of kind {row['kind']!r}; known are {', '.join(KINDS)}")
            ids, mask, lengths, kinds = found[row["split"]]
            new_ids, new_mask = dialogue.encode(row["messages"], tokenizer)
            ids += new_ids
            mask += new_mask
            lengths.append(len(new_ids))
            kinds.append(KINDS.index(row["kind"]))
    made = [
        Conversations(split, np.array(ids, dtype), np.array(mask, "u1"), np.array(lengths, "u4"), np.array(kinds, "u1"))
        for split, (ids, mask, lengths, kinds) in found.items()
    ]
    return made, _uses([part.ids for part in made if part.split == "train"], tokenizer)

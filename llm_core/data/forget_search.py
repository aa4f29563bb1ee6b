"""Shows that text is gone: decodes token shards and looks for what the forget list names.

A document is known again by its id, which is a hash of its text, and by passages: hashes of so many words of it, chosen
so that no document that stays has them. So the search needs neither the text nor the corpus. Scores have what is too
short for a passage: a question, an answer, the first words of a page. These are known by the question's or answer's own
hash, by a passage at the very beginning, and by the document's id, which evaluate gives to what it asks.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import xxhash

from llm_core.data.bpe import Tokenizer
from llm_core.data.document import identity, texts_in
from llm_core.data.forget_list import Forgotten, Marks, Passage
from llm_core.data.shards import SPLITS, Shards

WORDS = 13
"""Words of a passage, as in decontamination (GPT-3's length); a shorter text is one passage."""
PASSAGES = 8
"""Passages that are kept of a text."""
OPENINGS = (4, 6, 8, 12)
"""Words of a text's beginning that are tried, fewest first, until no other text has them."""
_TRIED = 64
_ID = 32
_FACTOR = np.uint64(0x9E3779B97F4A7C15)
Array = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class Hit:
    """Where something was found: the file's name, the sequence's number in it, and what: `text` or `passage`."""

    file: str
    sequence: int
    what: str


def windows(text: str, words: int) -> Array:
    """A hash of each run of so many words [number of runs]; case and white space do not matter."""
    return _runs(_hashed(text.split()), words)


def _hashed(words: Sequence[str]) -> Array:
    """A hash of each word."""
    codes = [xxhash.xxh3_64_intdigest(word.lower().encode("utf-8", "surrogatepass")) for word in words]
    return np.array(codes, dtype=np.uint64)


def _runs(single: Array, words: int) -> Array:
    if len(single) < words:
        return np.empty(0, np.uint64)
    total = np.zeros(len(single) - words + 1, np.uint64)
    with np.errstate(over="ignore"):
        for place in range(words):
            total = total * _FACTOR + single[place : len(single) - words + 1 + place]
    return total


def marks(documents: Sequence[Sequence[str]], others: Iterable[str]) -> list[Marks]:
    """By what each document, given as its texts, can be known again; none of the other texts has any of it.

    Up to eight passages, spread over its longest text; the beginning of a lone text; the hash of each of several.
    """
    tried = [_tried(max(texts, key=len, default="")) for texts in documents]
    begun = [_openings(texts[0]) if len(texts) == 1 else [] for texts in documents]
    parts = [[identity(text) for text in texts if text.strip()] if len(texts) > 1 else [] for texts in documents]
    common: set[Passage] = set()
    whole: set[str] = set()
    wanted = _by_words({passage for found in (*tried, *begun) for passage in found})
    known = {part for found in parts for part in found}
    for other in others:
        common.update(_found(other, wanted))
        if known and (code := identity(other)) in known:
            whole.add(code)
    return [
        Marks(
            tuple(_spread([passage for passage in passages if passage not in common])),
            tuple([passage for passage in openings if passage not in common][:1]),
            tuple(sorted(set(codes) - whole)),
        )
        for passages, openings, codes in zip(tried, begun, parts, strict=True)
    ]


def _tried(text: str) -> list[Passage]:
    words = min(WORDS, len(text.split()))
    codes = windows(text, words) if words else np.empty(0, np.uint64)
    chosen = np.unique(np.linspace(0, max(0, len(codes) - 1), min(len(codes), _TRIED)).astype(int)).tolist()
    return [(words, int(codes[place])) for place in chosen]


def _openings(text: str) -> list[Passage]:
    first = _hashed(text.split(maxsplit=OPENINGS[-1])[: OPENINGS[-1]])
    return [(words, int(_runs(first[:words], words)[0])) for words in OPENINGS if words <= len(first)]


def _spread(found: list[Passage]) -> list[Passage]:
    if len(found) <= PASSAGES:
        return found
    return [found[place] for place in np.linspace(0, len(found) - 1, PASSAGES).astype(int)]


def _by_words(wanted: Iterable[Passage]) -> dict[int, Array]:
    by_words: dict[int, list[int]] = {}
    for words, code in wanted:
        by_words.setdefault(words, []).append(code)
    return {words: np.sort(np.array(codes, np.uint64)) for words, codes in by_words.items()}


def _found(text: str, wanted: dict[int, Array]) -> Iterator[Passage]:
    single = _hashed(text.split()) if wanted else np.empty(0, np.uint64)
    for words, codes in wanted.items():
        for code in np.intersect1d(_runs(single, words), codes):
            yield words, int(code)


class Search:
    """Looks for what a list names in texts of any kind."""

    def __init__(self, forgotten: Forgotten) -> None:
        self._documents = forgotten.documents
        self._wanted = _by_words(forgotten.passages)
        self._parts = forgotten.parts
        self._openings = forgotten.openings

    def what(self, texts: Sequence[str], keys: Iterable[str] = ()) -> str | None:
        """`text` if one of these texts, or what has one of these ids, is forgotten; `passage` if one has a passage."""
        if any(identity(text) in self._documents for text in texts) or not self._documents.isdisjoint(keys):
            return "text"
        return "passage" if any(next(_found(text, self._wanted), None) for text in texts) else None

    def shards(self, path: Path) -> tuple[int, list[Hit]]:
        """(sequences decoded, what was found in them) of the product of `tokenize`. Raises `BrokenProduct`."""
        shards = Shards.open(path)
        count, hits = 0, []
        for split in SPLITS:
            for name in (split, f"dialogues-{split}"):
                for number, (texts, keys) in enumerate(_sequences(shards, name)):
                    count += 1
                    if what := self.what(texts, keys):
                        hits.append(Hit(name, number, what))
        return count, hits

    def table(self, path: Path) -> bool:
        """Whether a text of a Parquet file, in whatever column, is forgotten, or a passage, part or beginning of such.

        A text that begins with a forgotten document's id says that its row was made of that document.
        """
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(1_000):
                for row in batch.to_pylist():
                    texts = list(texts_in(row))
                    if self.what(texts, (text[:_ID] for text in texts)) or any(map(self._excerpt, texts)):
                        return True
        return False

    def _excerpt(self, text: str) -> bool:
        return (bool(self._parts) and identity(text) in self._parts) or (
            bool(self._openings) and not self._openings.isdisjoint(_openings(text))
        )


def _sequences(shards: Shards, name: str) -> Iterator[tuple[list[str], list[str]]]:
    """(texts, ids) of each sequence: a document is one text, a conversation one text a turn."""
    tokenizer = shards.tokenizer
    if name.startswith("dialogues-"):
        found = shards.dialogues(name.removeprefix("dialogues-"))
        tokens, offsets = found.tokens, found.offsets
    else:
        tokens, offsets = shards.tokens(name), shards.offsets(name)
    names = {number: special for special, number in tokenizer.specials.items()}
    for start, end in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        turns = _turns(tokens[start:end].tolist(), names, tokenizer)
        said = [[role, text] for role, text in turns if role]
        keys = [identity(json.dumps(said, ensure_ascii=False))] if said else []
        yield [text for _, text in turns], keys


def _turns(ids: list[int], names: dict[int, str], tokenizer: Tokenizer) -> list[tuple[str, str]]:
    """(role or nothing, text) of each stretch of ids between special tokens."""
    turns: list[tuple[str, str]] = []
    role, begun = "", 0
    for place, number in enumerate([*ids, None]):
        if number is None or number in names:
            if place > begun:
                turns.append((role, tokenizer.decode(ids[begun:place])))
            role, begun = (names[number].strip("<|>") if number is not None else ""), place + 1
    roles = {"system", "user", "assistant"}
    return [(role if role in roles else "", text) for role, text in turns]

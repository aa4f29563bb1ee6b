"""The last pass: records are read again in the order of the corpus, and kept or dropped for good."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from llm_core.data.corpus import Corpus
from llm_core.data.dedup import Duplicates, Hashes, Pieces
from llm_core.data.document import KINDS, identity, split_of
from llm_core.data.filters import too_short
from llm_core.data.spill import Records

EXCERPT = 200
_ROWS = 1_000
_PLACE = ("kind", "source", "reason", "part", "offset", "fields", "size", "id_high", "id_low")


@dataclass(frozen=True, slots=True)
class SourceRules:
    """What a source's documents undergo once all others are known."""

    name: str
    repeated_paragraphs: bool = False
    repeated_lines: bool = False
    min_words: int = 0


class Assembly:
    """Fills a corpus from records in order; remembers the pieces and ids that were written before."""

    def __init__(
        self, corpus: Corpus, sources: Sequence[SourceRules], copies: Duplicates, *, again: bool, validation: float
    ) -> None:
        """`again`: whether a text that becomes the same as an earlier one, once pieces are gone, is dropped."""
        self._corpus, self._sources, self._copies = corpus, sources, copies
        self._again, self._validation = again, validation
        self._paragraphs = {rules.name: Pieces() for rules in sources if rules.repeated_paragraphs}
        self._lines = {rules.name: Pieces(lines=True) for rules in sources if rules.repeated_lines}
        self._written = Hashes()
        self._leaders = copies.leaders()

    @property
    def removed(self) -> dict[str, int]:
        """Repeated paragraphs and lines that were removed."""
        return {
            "repeated_paragraphs": sum(pieces.removed for pieces in self._paragraphs.values()),
            "repeated_lines": sum(pieces.removed for pieces in self._lines.values()),
        }

    def run(self, index: pa.Table, records: Records, tell: Callable[[int], None]) -> None:
        """Write all records of the ordered index; `tell` is called with how many are done."""
        place = 0
        for batch in index.select(_PLACE).to_batches(max_chunksize=_ROWS):
            for row in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                self._add(place, row, records)
                place += 1
            tell(place)

    def _add(self, place: int, row: tuple[Any, ...], records: Records) -> None:
        kind, source, reason, part, offset, length, size, high, low = row
        fields, text = records.read(part, offset, length, size)
        rules = self._sources[source]
        reason = reason or self._copies.reason(place)
        cluster = self._cluster(place)
        if kind:
            if reason is None:
                self._corpus.keep(KINDS[kind], fields)
            else:
                self._drop(kind, rules, fields, reason, text, cluster)
            return
        key = f"{high:016x}{low:016x}"
        if reason is None:
            reason, fresh = self._against_earlier(rules, text, key, low)
            if reason is None:
                self._keep(rules, fields, fresh, key if fresh is text else identity(fresh), cluster)
                return
        self._drop(kind, rules, fields, reason, text, cluster)

    def _against_earlier(self, rules: SourceRules, text: str, key: str, low: int) -> tuple[str | None, str]:
        """(reason or None, the text without pieces that came before)."""
        paragraphs, lines = self._paragraphs.get(rules.name), self._lines.get(rules.name)
        if paragraphs is None and lines is None:
            return None, text
        if self._again and not self._written.add(low):
            return "duplicate", text
        fresh = paragraphs.fresh(text) if paragraphs else text
        fresh = lines.fresh(fresh) if lines else fresh
        if fresh == text:
            return None, text
        changed = identity(fresh)
        if self._again and changed != key and not self._written.add(int(changed[16:], 16)):
            return "duplicate", fresh
        return ("repeats_others" if too_short(fresh, rules.min_words) else None), fresh

    def _keep(self, rules: SourceRules, fields: dict[str, Any], text: str, key: str, cluster: str | None) -> None:
        self._corpus.masked.update({(rules.name, kind): count for kind, count in fields.get("masked", {}).items()})
        group = fields["group"] or key
        split = split_of(group, self._validation)
        row = {**fields, "id": key, "source": rules.name, "text": text, "group": group, "split": split}
        self._corpus.keep("documents", {**row, "cluster": cluster}, len(text.encode()))

    def _drop(
        self, kind: int, rules: SourceRules, fields: dict[str, Any], reason: str, text: str, cluster: str | None
    ) -> None:
        row = {"source": rules.name, "url": fields["url"], "digest": fields["digest"], "reason": reason}
        self._corpus.drop(KINDS[kind], {**row, "excerpt": text[:EXCERPT], "cluster": cluster})
        for name, item, words in fields.get("hits", ()):
            self._corpus.contaminated(KINDS[kind], row, name, item, words)

    def _cluster(self, place: int) -> str | None:
        """The id of the record that stays for this one, as it was before pieces were removed; None without copies."""
        leader = int(self._leaders[place])
        return None if leader < 0 else self._copies.identity(leader)

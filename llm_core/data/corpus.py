"""The files of a corpus while they are written, what is counted meanwhile, and what was dropped, read again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from llm_core.contract import BadInput
from llm_core.data import tables
from llm_core.data.document import CONTAMINATED, DIALOGUES, DOCUMENTS, DROPPED, PREFERENCES

SCHEMAS = {
    "documents": DOCUMENTS,
    "dialogues": DIALOGUES,
    "preferences": PREFERENCES,
    "dropped": DROPPED,
    "contaminated": CONTAMINATED,
}
GROUP_ROWS, GROUP_BYTES = 1_000, 16_000_000
_FEW_VALUES = ["source", "language", "licence", "date", "split", "kind", "reason", "what", "cluster", "set"]


class TableWriter:
    """Rows written to one Parquet file in the order in which they come, row group by row group."""

    def __init__(self, path: Path, table: str) -> None:
        self._path, self._schema = path, SCHEMAS[table]
        self._rows: list[dict[str, Any]] = []
        self._bytes = 0

    def __enter__(self) -> TableWriter:
        few = [column for column in self._schema.names if column in _FEW_VALUES]
        self._writer = pq.ParquetWriter(self._path, self._schema, compression="zstd", use_dictionary=few)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._flush()
        self._writer.close()

    def append(self, row: dict[str, Any], size: int = 0) -> None:
        """Add a row; `size`: bytes of its text."""
        self._rows.append(row)
        self._bytes += size
        if len(self._rows) >= GROUP_ROWS or self._bytes >= GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
            self._rows.clear()
            self._bytes = 0


@dataclass(slots=True)
class Tally:
    """What is counted over all rows of a corpus, or over those of one of its files."""

    seen: Counter[tuple[str, str]] = field(default_factory=Counter)
    kept: Counter[tuple[str, str]] = field(default_factory=Counter)
    reasons: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    splits: Counter[tuple[str, str]] = field(default_factory=Counter)
    masked: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Personal data masked in documents that are kept, by source and kind."""
    hits: Counter[str] = field(default_factory=Counter)
    text_bytes: Counter[str] = field(default_factory=Counter)

    def keep(self, what: str, row: dict[str, Any], size: int = 0) -> None:
        """Count a row of documents, dialogues or preferences; `size`: bytes of its text."""
        source = row["source"]
        self.seen[what, source] += 1
        self.kept[what, source] += 1
        self.splits[what, row["split"]] += 1
        self.text_bytes[source] += size

    def drop(self, what: str, source: str, reason: str) -> None:
        """Count a row that is dropped."""
        self.seen[what, source] += 1
        self.reasons[what, source, reason] += 1

    def add(self, other: Tally) -> None:
        """Add the counts of further rows."""
        for entry in fields(self):
            mine: Counter[Any] = getattr(self, entry.name)
            mine.update(getattr(other, entry.name))

    def total(self, what: str) -> int:
        """How many rows of a kind were kept."""
        return sum(count for (kind, _), count in self.kept.items() if kind == what)

    def facts(self) -> dict[str, Any]:
        """Counts for the manifest."""
        return {
            "kept": {what: self.total(what) for what in SCHEMAS if self.total(what)},
            "dropped": {"/".join(key): count for key, count in sorted(self.reasons.items())},
            "splits": {f"{what}/{split}": count for (what, split), count in sorted(self.splits.items())},
            "masked": {"/".join(key): count for key, count in sorted(self.masked.items())},
            "contamination": dict(sorted(self.hits.items())),
            "text_bytes": self.text_bytes.total(),
            "text_bytes_of": dict(sorted(self.text_bytes.items())),
        }

    def commonest(self) -> str:
        """The reason that most rows were dropped for."""
        return max(self.reasons, key=lambda key: self.reasons[key], default=("", "", "none"))[2]


def dropped_rows(corpus: Path, reason: str | None = None) -> Iterator[dict[str, Any]]:
    """Rows that were dropped for `reason` (all without one), in the order of source and URL.

    Each has source, what (documents, dialogues, preferences), url, digest, reason, excerpt and, for a copy, the cluster
    it belongs to. Raises `BadInput`, which lists the reasons there are, for one that nothing was dropped for.
    """
    known: Counter[str] = Counter()
    for path in tables.on_disk(corpus, "dropped"):
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(10_000):
                rows = batch if reason is None else batch.filter(pc.equal(batch["reason"], reason))
                if reason is not None:
                    known.update(batch["reason"].to_pylist())
                yield from rows.to_pylist()
    if reason is not None and reason not in known:
        there = ", ".join(f"{name} ({count})" for name, count in known.most_common()) or "none"
        raise BadInput(f"nothing was dropped for {reason!r}; the reasons of {corpus} are: {there}")

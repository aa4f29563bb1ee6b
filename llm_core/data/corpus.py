"""The corpus on disk while it is written, and what was dropped when it is read again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from llm_core.contract import BadInput
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


class Corpus:
    """Rows written to Parquet in the order in which they come, and counted."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stack = ExitStack()
        self._writers: dict[str, pq.ParquetWriter] = {}
        self._rows: dict[str, list[dict[str, Any]]] = {name: [] for name in SCHEMAS}
        self._bytes: Counter[str] = Counter()
        self.seen: Counter[tuple[str, str]] = Counter()
        self.kept: Counter[tuple[str, str]] = Counter()
        self.reasons: Counter[tuple[str, str, str]] = Counter()
        self.splits: Counter[tuple[str, str]] = Counter()
        self.masked: Counter[tuple[str, str]] = Counter()
        """Personal data masked in documents that are kept, by source and kind."""
        self.hits: Counter[str] = Counter()
        self.text_bytes: Counter[str] = Counter()

    def __enter__(self) -> Corpus:
        for name, schema in SCHEMAS.items():
            path = self._folder / f"{name}.parquet"
            few = [column for column in schema.names if column in _FEW_VALUES]
            writer = pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=few)
            self._writers[name] = self._stack.enter_context(writer)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name in SCHEMAS:
            self._flush(name)
        self._stack.close()

    def keep(self, what: str, row: dict[str, Any], size: int = 0) -> None:
        """Write a row of documents, dialogues or preferences; `size`: bytes of its text."""
        source = row["source"]
        self.seen[what, source] += 1
        self.kept[what, source] += 1
        self.splits[what, row["split"]] += 1
        self.text_bytes[source] += size
        self._append(what, row, size)

    def drop(self, what: str, row: dict[str, Any]) -> None:
        """Write a row of dropped.parquet."""
        self.seen[what, row["source"]] += 1
        self.reasons[what, row["source"], row["reason"]] += 1
        self._append("dropped", {**row, "what": what}, 0)

    def contaminated(self, what: str, row: dict[str, Any], name: str, item: str, words: str) -> None:
        """Write a hit: a row that is dropped shares these words with an item of the evaluation set `name`."""
        self.hits[name] += 1
        traced = {key: row[key] for key in ("source", "url", "digest")}
        self._append("contaminated", {**traced, "what": what, "set": name, "item": item, "words": words}, 0)

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

    def _append(self, name: str, row: dict[str, Any], size: int) -> None:
        self._rows[name].append(row)
        self._bytes[name] += size
        if len(self._rows[name]) >= GROUP_ROWS or self._bytes[name] >= GROUP_BYTES:
            self._flush(name)

    def _flush(self, name: str) -> None:
        if self._rows[name]:
            self._writers[name].write_table(pa.Table.from_pylist(self._rows[name], schema=SCHEMAS[name]))
            self._rows[name].clear()
            self._bytes[name] = 0


def dropped_rows(corpus: Path, reason: str | None = None) -> Iterator[dict[str, Any]]:
    """Rows that were dropped for `reason` (all without one), in the order of source and URL.

    Each has source, what (documents, dialogues, preferences), url, digest, reason, excerpt and, for a copy, the cluster
    it belongs to. Raises `BadInput`, which lists the reasons there are, for one that nothing was dropped for.
    """
    path = corpus / "dropped.parquet"
    known: Counter[str] = Counter()
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(10_000):
            rows = batch if reason is None else batch.filter(pc.equal(batch["reason"], reason))
            if reason is not None:
                known.update(batch["reason"].to_pylist())
            yield from rows.to_pylist()
    if reason is not None and reason not in known:
        there = ", ".join(f"{name} ({count})" for name, count in known.most_common()) or "none"
        raise BadInput(f"nothing was dropped for {reason!r}; the reasons of {path} are: {there}")

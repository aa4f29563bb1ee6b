"""Rows gathered in parts that survive a kill: closed Parquet files in scratch, and the place in the source they reach.

A part and the state that belongs to it are closed together every so many rows or seconds, and when the run is asked to
end. A rerun goes on behind the last closed part. The product is written from the parts, row group by row group, and
row groups depend on the rows alone, so that its bytes are those of a run that nothing disturbed.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import pyarrow.parquet as pq

from llm_core.artifacts import sha256
from llm_core.contract import BadInput
from llm_core.data.sources.rows import SCHEMAS, Row, batches, table
from llm_core.sealed import read_sealed, write_sealed

PART_ROWS = 50_000
PART_SECONDS = 30.0


@dataclass(slots=True)
class Gathered:
    """What a source gave: counts by unit or reason, facts for the manifest, sentences and tables for people."""

    counts: dict[str, float]
    facts: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    unreadable: list[dict[str, str | float]] = field(default_factory=list)


class Resumable(Protocol):
    """A stream of rows that can be left and taken up again."""

    @property
    def key(self) -> str:
        """Names what is read and how; parts gathered under another key are thrown away."""
        ...

    @property
    def skipped(self) -> Counter[str]:
        """Rows left out so far, by reason."""
        ...

    @property
    def unreadable(self) -> list[dict[str, str | float]]:
        """Files that could not be read so far: file, problem, records."""
        ...

    def rows(self, state: Any) -> Iterator[Row]:
        """The rows behind `state`, or all of them where it is None."""
        ...

    def state(self) -> Any:
        """Where the stream is, behind the row it gave last; JSON can hold it."""
        ...


class Parts:
    """The parts of one source in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file = folder / "state.json"
        self.saved: dict[str, Any] = read_sealed(self._file) if self._file.is_file() else {}

    @property
    def unfinished(self) -> dict[str, Any] | None:
        """What was saved by a run that did not come to its end; None if there is nothing to go on with."""
        return None if not self.saved or self.saved["finished"] else self.saved

    def begin(self, key: str, facts: dict[str, Any]) -> None:
        """Keep the parts if they belong to `key`, else start over."""
        if self.saved.get("key") != key:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder.mkdir(parents=True)
            self.saved = {"key": key, "facts": facts, "parts": [], "rows": 0, "state": None}
            self.saved |= {"skipped": {}, "unreadable": [], "finished": False}
            self._save()

    def _save(self) -> None:
        write_sealed(self._file, self.saved)

    def path(self, number: int) -> Path:
        """The file of a closed part."""
        return self._folder / f"{number:06d}.parquet"

    def write(
        self, what: str, rows: Iterator[Row], source: Resumable, licence: str | None, tell: Callable[[int], None]
    ) -> None:
        """Write the rows into further parts until they end; an exception on the way closes the part first."""
        stream = batches(rows)
        more = True
        while more:
            parts, count = self.saved["parts"], self.saved["rows"]
            partial = self.path(len(parts)).with_suffix(".open")
            began, fresh, place = time.monotonic(), 0, None
            skipped: dict[str, int] = {}
            try:
                with pq.ParquetWriter(partial, SCHEMAS[what], compression="zstd") as writer:
                    while fresh < PART_ROWS and time.monotonic() - began < PART_SECONDS:
                        batch = next(stream, None)
                        if batch is None:
                            more = False
                            break
                        writer.write_table(table(what, batch, licence))
                        fresh += len(batch)
                        place, skipped = source.state(), dict(source.skipped)
                        tell(count + fresh)
            finally:
                if fresh and _whole(partial, fresh):
                    partial.rename(self.path(len(parts)))
                    parts.append(sha256(self.path(len(parts))))
                    self.saved |= {"rows": count + fresh, "state": place, "skipped": skipped}
                    self._save()
                else:
                    partial.unlink(missing_ok=True)
        self.saved |= {"finished": True, "skipped": dict(source.skipped), "unreadable": source.unreadable}
        self._save()

    def join(self, target: Path, what: str) -> None:
        """All parts as one Parquet file. Raises `BadInput` for a part that is not what was written."""
        with pq.ParquetWriter(target, SCHEMAS[what], compression="zstd") as writer:
            for number, known in enumerate(self.saved["parts"]):
                if sha256(self.path(number)) != known:
                    raise BadInput(
                        f"{self.path(number)}: its bytes changed after it was written; delete {self._file},"
                        " and all rows of the source are gathered anew"
                    )
                with pq.ParquetFile(self.path(number)) as part:
                    for group in range(part.num_row_groups):
                        writer.write_table(part.read_row_group(group))


def _whole(path: Path, rows: int) -> bool:
    """Flush a part to disk; False if it could not be closed, as on a full disk."""
    try:
        with open(path, "rb") as file:
            os.fsync(file.fileno())
        return bool(pq.read_metadata(path).num_rows == rows)
    except (OSError, ValueError):
        return False


def gather(
    parts: Parts,
    folder: Path,
    what: str,
    source: Resumable,
    *,
    limit: int | None,
    licence: str | None,
    facts: dict[str, Any],
    tell: Callable[[int], None],
) -> Gathered:
    """Fill `folder`/`what`.parquet (documents, dialogues or preferences) from a source, going on where a kill left it.

    `facts` are noted when the source is begun, and stay those of the beginning. `tell` is called with the count so far
    after each batch.
    """
    parts.begin(json.dumps([source.key, what, limit, licence]), facts)
    saved = parts.saved
    if not saved["finished"]:
        source.skipped.update(saved["skipped"])
        left = None if limit is None else limit - saved["rows"]
        parts.write(what, islice(source.rows(saved["state"]), left), source, licence, tell)
    parts.join(folder / f"{what}.parquet", what)
    counts = {what: float(saved["rows"])} | {f"skipped {reason}": float(n) for reason, n in saved["skipped"].items()}
    return Gathered(counts, dict(saved["facts"]), unreadable=list(saved["unreadable"]))

"""A crawl store made again from a snapshot of it: for a clone that has the data but never crawled."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from llm_core.data.web.frontier import DONE, connect
from llm_core.data.web.outcomes import STORED
from llm_core.data.web.store import ROWS, link_or_copy
from llm_core.data.web.urls import host_of

SEEDED = "from-snapshot"
"""Name of a store that was seeded before it is known which version of the embedded site it will serve."""
_COPIED = (
    "status",
    "content_type",
    "digest",
    "bytes",
    "segment",
    "offset",
    "fetched",
    "etag",
    "last_modified",
    "robots",
)


def seed(snapshot: Path, store: Path) -> int:
    """Fill an absent store from a snapshot's segments and table; pages that it now holds, 0 if nothing was to be done.

    A refresh then asks conditionally, as it would have where the crawl was made. URLs that were seen but not stored are
    not in a snapshot: the crawl finds them again. The store appears whole or not at all.
    """
    table = snapshot / "pages.parquet"
    if (store / "frontier.sqlite").exists() or not table.is_file():
        return 0
    building = store.with_name(f".{store.name}.seeding")
    shutil.rmtree(building, ignore_errors=True)
    (building / "warc").mkdir(parents=True)
    for segment in sorted((snapshot / "warc").iterdir()):
        link_or_copy(segment, building / "warc" / segment.name)
    db = connect(building / "frontier.sqlite")
    pages = 0
    try:
        with pq.ParquetFile(table) as file:
            for batch in file.iter_batches(ROWS, columns=["url", *_COPIED]):
                pages += _insert(db, batch.to_pylist())
    finally:
        db.close()
    shutil.rmtree(store, ignore_errors=True)  # at most a lock file and what a killed first crawl left
    building.rename(store)
    return pages


def _insert(db: sqlite3.Connection, rows: list[dict[str, Any]]) -> int:
    columns = ("url", "host", "depth", "state", "outcome", "delivered", *_COPIED)
    marks = ",".join("?" * len(columns))
    values = [
        (row["url"], host_of(row["url"]), 0, DONE, STORED, row["digest"], *(row[name] for name in _COPIED))
        for row in rows
    ]
    db.execute("BEGIN")
    db.executemany(f"INSERT INTO pages ({','.join(columns)}) VALUES ({marks})", values)
    db.execute("COMMIT")
    return len(rows)

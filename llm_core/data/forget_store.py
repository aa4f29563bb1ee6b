"""Takes what is forgotten out of crawl stores, which otherwise only grow: the pages, their records and their addresses.

A kill on the way leaves a whole store: new segments are written beside the old ones, one transaction moves the pages
over, and only then the old segments go. Whoever runs it again finds what was left behind.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock

from llm_core.data.forget_list import Forgotten
from llm_core.data.forget_raw import pages_held, rewrite_segment, segment_holds, sweep_pages
from llm_core.data.web.frontier import connect
from llm_core.data.web.warc import recover
from llm_core.sealed import read_sealed, write_sealed


def purge_stores(folder: Path, forgotten: Forgotten) -> int:
    """Purge every crawl store below `folder`, of the web and of Common Crawl; addresses and pages that went."""
    if not folder.is_dir():
        return 0
    web = sorted(path.parent for path in folder.rglob("frontier.sqlite"))
    common = sorted(path for path in folder.rglob("common-crawl-*") if path.is_dir())
    return sum(purge_web(store, forgotten) for store in web) + sum(purge_common(store, forgotten) for store in common)


def purge_web(store: Path, forgotten: Forgotten) -> int:
    """Purge one store of the web crawl; waits for a crawl that works on it."""
    with FileLock(store / "lock"):
        recover(store / "warc")
        db = connect(store / "frontier.sqlite")
        try:
            rows = db.execute("SELECT url, digest FROM pages").fetchall()
            urls = {url for url, digest in rows if forgotten.holds(url, digest)}
            held = [path for path in _segments(store) if segment_holds(path, urls, forgotten)]
            if urls or held:
                _move(db, store, urls, held, forgotten)
        finally:
            db.close()
    return len(urls)


def _segments(store: Path) -> Iterator[Path]:
    yield from sorted((store / "warc").glob("*.warc.gz"))


def _move(db: sqlite3.Connection, store: Path, urls: set[str], held: list[Path], forgotten: Forgotten) -> None:
    number = 1 + max((int(path.name[:5]) for path in _segments(store)), default=-1)
    moved: list[tuple[str, int, str, int]] = []
    for place, segment in enumerate(held):
        target = segment.with_name(f"{number + place:05d}.warc.gz")
        places = rewrite_segment(segment, urls, forgotten, target) or {}
        moved += [(target.name, new, segment.name, old) for old, new in places.items()]
    db.execute("PRAGMA secure_delete=ON")
    db.execute("BEGIN")
    db.executemany("DELETE FROM pages WHERE url=?", [(url,) for url in sorted(urls)])
    db.executemany("UPDATE pages SET segment=?, offset=? WHERE segment=? AND offset=?", moved)
    db.execute("COMMIT")
    db.execute("VACUUM")
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    for segment in held:
        segment.unlink()


def purge_common(store: Path, forgotten: Forgotten) -> int:
    """Purge one store of Common Crawl; a file whose purge is cut off is read again by the next acquire."""
    removed = 0
    with FileLock(store / "lock"):
        for table in sorted(store.glob("[0-9]*.parquet")):
            note = table.with_suffix(".json")
            if not note.is_file() or not pages_held(table, forgotten)[0]:
                continue
            about: dict[str, Any] = read_sealed(note)
            note.unlink()
            gone = sweep_pages(table, store, forgotten)
            write_sealed(note, about | {"pages": about["pages"] - gone})
            removed += gone
    return removed

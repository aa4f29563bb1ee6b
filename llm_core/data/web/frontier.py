"""The crawl's memory: every URL with its state, in SQLite.

A page is committed as done only after its WARC record is on disk, so that a crawl that is killed at any moment loses
nothing and fetches at most the pages in flight again. Scrapy's own JOBDIR queue loses what it held in memory.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from llm_core.data.web.urls import host_of

WAITING, IN_FLIGHT, DONE = 0, 1, 2

_SCHEMA = """
CREATE TABLE IF NOT EXISTS pages (
    url TEXT PRIMARY KEY, host TEXT NOT NULL, depth INTEGER NOT NULL, state INTEGER NOT NULL DEFAULT 0,
    tries INTEGER NOT NULL DEFAULT 0, outcome TEXT, status INTEGER, content_type TEXT, digest TEXT, bytes INTEGER,
    segment TEXT, offset INTEGER, fetched TEXT, etag TEXT, last_modified TEXT, robots TEXT
);
CREATE INDEX IF NOT EXISTS waiting ON pages (host, state);
"""


class Entry(NamedTuple):
    """A URL that is to be fetched, with what is known of its last copy."""

    url: str
    depth: int
    tries: int
    etag: str | None
    last_modified: str | None


class Frontier:
    """The pages of one crawl store. Budgets: pages stored in all, and for each host."""

    def __init__(self, path: Path, *, max_pages: int, max_pages_per_host: int | None = None) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=NORMAL")
        self._db.executescript(_SCHEMA)
        self._db.execute("BEGIN")
        self._db.execute("UPDATE pages SET state=0 WHERE state=1")
        self.max_pages = max_pages
        self.max_pages_per_host = max_pages_per_host or max_pages
        self._count()

    def _count(self) -> None:
        rows = self._db.execute("SELECT host, state, outcome='stored', count(*) FROM pages GROUP BY 1, 2, 3").fetchall()
        self.waiting: Counter[str] = Counter()
        self.stored: Counter[str] = Counter()
        self.in_flight: Counter[str] = Counter()
        for host, state, stored, count in rows:
            if state == WAITING:
                self.waiting[host] += count
            elif stored:
                self.stored[host] += count

    def ask_again(self) -> None:
        """Let every page that was stored wait for a conditional request."""
        self._db.execute("UPDATE pages SET state=0, tries=0 WHERE state=2")
        self._count()

    def add(self, url: str, depth: int) -> bool:
        """Let a canonical URL wait; False if it is known."""
        host = host_of(url)
        added = self._db.execute(
            "INSERT OR IGNORE INTO pages (url, host, depth) VALUES (?, ?, ?)", (url, host, depth)
        ).rowcount
        self.waiting[host] += added
        return added > 0

    def take(self) -> Entry | None:
        """The next URL to fetch, from the host with the fewest requests under way; None if there is none now."""
        host = self._next_host()
        if host is None:
            return None
        row = self._db.execute(
            "SELECT url, depth, tries, etag, last_modified FROM pages WHERE host=? AND state=0 ORDER BY rowid LIMIT 1",
            (host,),
        ).fetchone()
        self._db.execute("UPDATE pages SET state=1 WHERE url=?", row[:1])
        self.waiting[host] -= 1
        self.in_flight[host] += 1
        return Entry(*row)

    def _next_host(self) -> str | None:
        if self.stored.total() + self.in_flight.total() >= self.max_pages:
            return None
        open_hosts = [
            host
            for host, count in self.waiting.items()
            if count > 0 and self.stored[host] + self.in_flight[host] < self.max_pages_per_host
        ]
        return min(open_hosts, key=lambda host: self.in_flight[host], default=None)

    def pending(self) -> bool:
        """Whether `take` would return a URL."""
        return self._next_host() is not None

    def retry(self, url: str) -> None:
        """Put a URL that is in flight back to those that wait."""
        self._db.execute("UPDATE pages SET state=0, tries=tries+1 WHERE url=?", (url,))
        self._landed(url)
        self.waiting[host_of(url)] += 1

    def finish(self, url: str, outcome: str, values: Mapping[str, Any] | None = None) -> None:
        """Mark a URL as done: `outcome` is "stored", or why nothing was stored. `values` are columns to set."""
        columns = {"state": DONE, "outcome": outcome, **(values or {})}
        assignments = ", ".join(f"{name}=?" for name in columns)
        self._db.execute(f"UPDATE pages SET {assignments} WHERE url=?", (*columns.values(), url))
        self._landed(url)
        self.stored[host_of(url)] += outcome == "stored"

    def _landed(self, url: str) -> None:
        host = host_of(url)
        self.in_flight[host] = max(0, self.in_flight[host] - 1)

    def known_digest(self, url: str) -> str | None:
        """Digest of the stored copy of a URL, if there is one."""
        row = self._db.execute("SELECT digest FROM pages WHERE url=? AND segment IS NOT NULL", (url,)).fetchone()
        return row[0] if row else None

    def commit(self) -> None:
        """Make everything so far durable. Call it only after the WARC file was flushed."""
        self._db.execute("COMMIT")
        self._db.execute("BEGIN")

    def outcomes(self) -> dict[str, int]:
        """Pages by outcome; those that still wait count as "waiting"."""
        rows = self._db.execute(
            "SELECT CASE state WHEN 2 THEN outcome ELSE 'waiting' END AS o, count(*) FROM pages GROUP BY o ORDER BY o"
        )
        return dict(rows.fetchall())

    def stored_pages(self) -> Iterator[dict[str, Any]]:
        """The pages that have a copy in a segment, sorted by URL."""
        cursor = self._db.execute(
            "SELECT url, status, content_type, digest, bytes, segment, offset, fetched, etag, last_modified, robots "
            "FROM pages WHERE segment IS NOT NULL AND outcome IS NOT 'gone' ORDER BY url"
        )
        names = [column[0] for column in cursor.description]
        for row in cursor:
            yield dict(zip(names, row, strict=True))

    def close(self) -> None:
        """Commit and close."""
        self._db.execute("COMMIT")
        self._db.close()

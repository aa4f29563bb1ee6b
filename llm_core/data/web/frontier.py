"""The crawl's memory: every URL with its state, in SQLite.

A page is committed as done only after its WARC record is on disk, so that a crawl that is killed at any moment loses
nothing and fetches at most the pages in flight again. Scrapy's own JOBDIR queue loses what it held in memory. What
is held in memory here grows with the hosts, not with the URLs.
"""

from __future__ import annotations

import sqlite3
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from llm_core.data.web.outcomes import DEPTH, NOT_ASKED, REDIRECT, STORED, TEMPORARY
from llm_core.data.web.urls import host_of

WAITING, IN_FLIGHT, DONE = 0, 1, 2
PAGE, SITEMAP = 0, 1

_SCHEMA = """
CREATE TABLE IF NOT EXISTS pages (
    url TEXT PRIMARY KEY, host TEXT NOT NULL, depth INTEGER NOT NULL, state INTEGER NOT NULL DEFAULT 0,
    tries INTEGER NOT NULL DEFAULT 0, outcome TEXT, status INTEGER, content_type TEXT, digest TEXT, bytes INTEGER,
    segment TEXT, offset INTEGER, fetched TEXT, etag TEXT, last_modified TEXT, robots TEXT
);
CREATE INDEX IF NOT EXISTS waiting ON pages (host, state);
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
"""
# A URL that was too deep where it was found first waits as soon as a shorter way to it is found.
_ADD = (
    "INSERT INTO pages (url, host, depth, kind, hops, state, outcome) VALUES (?, ?, ?, ?, ?, ?, ?) "
    f"ON CONFLICT (url) DO UPDATE SET state=0, outcome=NULL, depth=excluded.depth "
    f"WHERE outcome='{DEPTH}' AND state=2 AND excluded.state=0"
)
_ADDED = {
    "kind": "INTEGER NOT NULL DEFAULT 0",  # a page or a sitemap
    "hops": "INTEGER NOT NULL DEFAULT 0",  # redirects (sitemaps: indexes) that led here
    "waits": "INTEGER NOT NULL DEFAULT 0",  # times it was put off with 429 or 503
    "target": "TEXT",  # where a redirect leads
    "detail": "TEXT",  # the outcome in words
    "remark": "TEXT",  # what was odd about a stored page
    "asked_etag": "TEXT",  # the newest validators, where the body stayed the same
    "asked_modified": "TEXT",
    "delivered": "TEXT",  # the digest that stood in the last product
}


class Entry(NamedTuple):
    """A URL that is to be fetched, with what is known of its last copy."""

    url: str
    depth: int
    tries: int
    etag: str | None
    last_modified: str | None
    kind: int
    hops: int
    waits: int
    known: int


@dataclass(frozen=True, slots=True)
class Budgets:
    """Limits of one crawl: pages stored in all and per host, requests in all, under way per host and in all, depth."""

    max_pages: int
    max_pages_per_host: int | None = None
    max_requests: int | None = None
    per_host: int = 1
    in_all: int = 16
    depth: int = 20


class Frontier:
    """The URLs of one crawl store, handed out host by host in turn."""

    def __init__(self, path: Path, budgets: Budgets) -> None:
        self._db = connect(path)
        self._db.execute("BEGIN")
        self._db.execute("UPDATE pages SET state=0 WHERE state=1")
        self._db.execute("UPDATE pages SET tries=0, waits=0 WHERE state=0")
        marks = ",".join("?" * len(TEMPORARY))
        self._db.execute(
            f"UPDATE pages SET state=0, tries=0, waits=0 WHERE outcome IN ({marks}) AND state=2", TEMPORARY
        )
        self._db.execute("UPDATE pages SET state=0 WHERE outcome=? AND depth<=?", (DEPTH, budgets.depth))
        self.budgets = budgets
        self._blocked: dict[str, float] = {}
        self._postponed: set[str] = set()
        self._count()

    def _count(self) -> None:
        rows = self._db.execute("SELECT host, state, outcome, count(*) FROM pages GROUP BY 1, 2, 3").fetchall()
        self.waiting: Counter[str] = Counter()
        self.stored: Counter[str] = Counter()
        self.in_flight: Counter[str] = Counter()
        self.stored_in_all = self.asked = self.flying = 0
        for host, state, outcome, count in rows:
            if state == WAITING:
                self.waiting[host] += count
                continue
            self.asked += count if outcome not in NOT_ASKED else 0
            if outcome == STORED:
                self.stored[host] += count
                self.stored_in_all += count
        self._ready = dict.fromkeys(host for host, count in self.waiting.items() if count)

    def begin_refresh(self) -> None:
        """Let every page wait for a conditional request, unless a refresh that was cut off is still under way."""
        if not self.fact("refreshing"):
            self._db.execute("UPDATE pages SET state=0, tries=0, waits=0 WHERE state=2 AND outcome<>?", (DEPTH,))
            self.set_fact("refreshing", 1)
            self.set_fact("refreshes", self.fact("refreshes") + 1)
            self.commit()
        self._count()

    def fact(self, name: str) -> int:
        """A number that the store remembers; 0 if it was never set."""
        row = self._db.execute("SELECT value FROM facts WHERE name=?", (name,)).fetchone()
        return int(row[0]) if row else 0

    def set_fact(self, name: str, value: int) -> None:
        """Remember a number from the next commit on."""
        self._db.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, value))

    def add(self, urls: Iterable[str], depth: int, *, kind: int = PAGE, hops: int = 0) -> int:
        """Let canonical URLs wait; returns how many did not before. Those that are too deep are only remembered."""
        new = 0
        deep = depth > self.budgets.depth
        values = (depth, kind, hops, DONE if deep else WAITING, DEPTH if deep else None)
        for url in urls:
            host = host_of(url)
            changed = self._db.execute(_ADD, (url, host, *values)).rowcount
            if changed > 0 and not deep:
                new += 1
                self.waiting[host] += 1
                self._open(host)
        return new

    def _open(self, host: str) -> None:
        if host not in self._postponed and host not in self._blocked and self.waiting[host] > 0:
            self._ready.setdefault(host)

    def take(self) -> Entry | None:
        """The next URL to fetch, from each host in turn; None if there is none now."""
        if self._spent():
            return None
        while self._ready:
            host = next(iter(self._ready))
            del self._ready[host]  # it comes back behind the others, or when one of its requests has landed
            if self._may(host):
                entry = self._take_from(host)
                self._open(host)
                return entry
        return None

    def _may(self, host: str) -> bool:
        limit = self.budgets.max_pages_per_host
        return (
            self.waiting[host] > 0
            and self.in_flight[host] < self.budgets.per_host
            and (limit is None or self.stored[host] + self.in_flight[host] < limit)
        )

    def _take_from(self, host: str) -> Entry:
        row = self._db.execute(
            "SELECT url, depth, tries, coalesce(asked_etag, etag), coalesce(asked_modified, last_modified), "
            "kind, hops, waits, segment IS NOT NULL FROM pages WHERE host=? AND state=0 ORDER BY rowid LIMIT 1",
            (host,),
        ).fetchone()
        self._db.execute("UPDATE pages SET state=1 WHERE url=?", row[:1])
        self.waiting[host] -= 1
        self.in_flight[host] += 1
        self.flying += 1
        return Entry._make(row)

    def _spent(self) -> bool:
        budgets = self.budgets
        return (
            self.stored_in_all + self.flying >= budgets.max_pages
            or self.flying >= budgets.in_all
            or (budgets.max_requests is not None and self.asked + self.flying >= budgets.max_requests)
        )

    def pending(self) -> bool:
        """Whether anything is left to do: a URL that could be taken, or a host that is only waited for."""
        if self._spent():
            return False
        return any(self._may(host) for host in self._ready) or any(self._may(host) for host in self._blocked)

    def block(self, host: str, seconds: float) -> None:
        """Hand out nothing of a host for some seconds."""
        self._blocked[host] = max(self._blocked.get(host, 0.0), time.monotonic() + seconds)
        self._ready.pop(host, None)

    def is_blocked(self, host: str) -> bool:
        """Whether a host rests."""
        return host in self._blocked

    def unblock(self) -> float | None:
        """Open the hosts whose time has come; seconds until the next one, None if no host is blocked."""
        now = time.monotonic()
        for host in [host for host, until in self._blocked.items() if until <= now]:
            del self._blocked[host]
            self._open(host)
        return min(self._blocked.values()) - now if self._blocked else None

    def postpone(self, host: str) -> None:
        """Leave a host for the next run: its URLs go on waiting."""
        self._postponed.add(host)
        self._blocked.pop(host, None)
        self._ready.pop(host, None)

    def postponed(self) -> frozenset[str]:
        """The hosts that were left for the next run."""
        return frozenset(self._postponed)

    def retry(self, url: str, *, waited: bool = False) -> None:
        """Put a URL that is in flight back to those that wait; `waited`: the host put it off, it did not fail."""
        column = "waits" if waited else "tries"
        self._db.execute(f"UPDATE pages SET state=0, {column}={column}+1 WHERE url=?", (url,))
        self.waiting[host_of(url)] += 1
        self._landed(url)

    def finish(self, url: str, outcome: str, values: Mapping[str, Any] | None = None) -> None:
        """Mark a URL as done: `outcome` is "stored", or why nothing was stored. `values` are columns to set."""
        columns = {"state": DONE, "outcome": outcome, "detail": None, **(values or {})}
        assignments = ", ".join(f"{name}=?" for name in columns)
        self._db.execute(f"UPDATE pages SET {assignments} WHERE url=?", (*columns.values(), url))
        self.asked += outcome not in NOT_ASKED
        if outcome == STORED:
            self.stored[host_of(url)] += 1
            self.stored_in_all += 1
        self._landed(url)

    def _landed(self, url: str) -> None:
        host = host_of(url)
        if self.in_flight[host] > 0:
            self.in_flight[host] -= 1
            self.flying -= 1
        self._open(host)

    def known_digest(self, url: str) -> str | None:
        """Digest of the stored copy of a URL, if there is one."""
        row = self._db.execute("SELECT digest FROM pages WHERE url=? AND segment IS NOT NULL", (url,)).fetchone()
        return row[0] if row else None

    def leads_to(self, start: str, goal: str, steps: int = 10) -> bool:
        """Whether the redirects that are known lead from one URL to another."""
        url: str | None = start
        for _ in range(steps):
            if url == goal or url is None:
                break
            row = self._db.execute("SELECT target FROM pages WHERE url=? AND outcome=?", (url, REDIRECT)).fetchone()
            url = row[0] if row else None
        return url == goal

    def commit(self) -> None:
        """Make everything so far durable. Call it only after the WARC file was flushed."""
        self._db.execute("COMMIT")
        self._db.execute("BEGIN")

    def close(self) -> None:
        """Commit and close."""
        self._db.execute("COMMIT")
        self._db.close()


def connect(path: Path) -> sqlite3.Connection:
    """Open a store's database; one that an earlier version made gets the columns it lacks."""
    path.parent.mkdir(parents=True, exist_ok=True)
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA synchronous=NORMAL")
    db.executescript(_SCHEMA)
    present = {row[1] for row in db.execute("PRAGMA table_info(pages)")}
    for name, kind in _ADDED.items():
        if name not in present:
            db.execute(f"ALTER TABLE pages ADD COLUMN {name} {kind}")
    return db

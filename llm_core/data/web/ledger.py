"""What a crawl store holds, for people and products: its pages, how each URL ended, and what a refresh changed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llm_core.data.web.frontier import connect
from llm_core.data.web.outcomes import BUDGET, POSTPONED, STORED, VOID

LISTED = 100
"""URLs that are listed for each kind of change."""
_COLUMNS = "url, status, content_type, digest, bytes, segment, offset, fetched, etag, last_modified, robots"
_VOID = ",".join(f"'{outcome}'" for outcome in VOID)
_IN_TABLE = f"segment IS NOT NULL AND outcome NOT IN ({_VOID})"


@dataclass(slots=True)
class Diff:
    """Pages that came, changed, went or stayed since the last product; `urls` lists some of the first three."""

    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(("new", "changed", "gone", "unchanged"), 0))
    urls: dict[str, list[str]] = field(default_factory=lambda: {"new": [], "changed": [], "gone": []})

    def add(self, url: str, before: str | None, now: str | None) -> None:
        """Count a page by its digest in the last product and now; None: it was or is not there."""
        if before is None and now is None:
            return
        if before is None:
            change = "new"
        elif now is None:
            change = "gone"
        else:
            change = "unchanged" if before == now else "changed"
        self.counts[change] += 1
        if change in self.urls and len(self.urls[change]) < LISTED:
            self.urls[change].append(url)


class Ledger:
    """A crawl store's database, for reading. `deliver` is the only thing it writes."""

    def __init__(self, store: Path) -> None:
        self._db = connect(store / "frontier.sqlite")

    def pages(self, admits: Callable[[str], bool]) -> Iterator[dict[str, Any]]:
        """The pages that belong to the product, sorted by URL."""
        cursor = self._db.execute(f"SELECT {_COLUMNS} FROM pages WHERE {_IN_TABLE} ORDER BY url")
        names = [column[0] for column in cursor.description]
        for row in cursor:
            if admits(row[0]):
                yield dict(zip(names, row, strict=True))

    def copies(self) -> int:
        """Pages of which the store has a copy, in the product or not."""
        return int(self._db.execute("SELECT count(*) FROM pages WHERE segment IS NOT NULL").fetchone()[0])

    def diff(self, admits: Callable[[str], bool]) -> Diff:
        """What changed since the last call of `deliver`."""
        diff = Diff()
        for url, now, before in self._digests(admits):
            diff.add(url, before, now)
        return diff

    def deliver(self, admits: Callable[[str], bool]) -> None:
        """Remember what the product holds now: the next `diff` is against this."""
        changed = [(now, url) for url, now, before in self._digests(admits) if now != before]
        self._db.execute("BEGIN")
        self._db.executemany("UPDATE pages SET delivered=? WHERE url=?", changed)
        self._db.execute("COMMIT")

    def _digests(self, admits: Callable[[str], bool]) -> Iterator[tuple[str, str | None, str | None]]:
        rows = self._db.execute(
            f"SELECT url, CASE WHEN {_IN_TABLE} THEN digest END AS now, delivered FROM pages "
            "WHERE delivered IS NOT NULL OR segment IS NOT NULL ORDER BY url"
        )
        for url, now, before in rows:
            yield url, now if now is not None and admits(url) else None, before

    def outcomes(self, postponed: Collection[str] = ()) -> list[dict[str, Any]]:
        """Rows {outcome, count, url, detail}: how URLs ended, with an example of each, in the order of the names.

        What still waits counts as "budget", at hosts that were left for the next run as "postponed". Stored pages
        that were odd are counted once more, as "stored: wrong_charset" and the like.
        """
        rows: dict[str, dict[str, Any]] = {}

        def count(outcome: str, number: int, url: str, detail: str | None) -> None:
            row = rows.setdefault(outcome, {"outcome": outcome, "count": 0, "url": url, "detail": detail})
            row["count"] += number

        for outcome, number, url, detail in self._db.execute(
            "SELECT outcome, count(*), min(url), detail FROM pages WHERE state=2 GROUP BY outcome"
        ):
            count(outcome, number, url, detail)
        for host, number, url in self._db.execute(
            "SELECT host, count(*), min(url) FROM pages WHERE state<>2 GROUP BY host ORDER BY host"
        ):
            count(POSTPONED if host in postponed else BUDGET, number, url, None)
        for remark, number, url in self._db.execute(
            f"SELECT remark, count(*), min(url) FROM pages WHERE outcome='{STORED}' AND remark IS NOT NULL GROUP BY 1"
        ):
            count(f"{STORED}: {remark}", number, url, None)
        for number, url in self._db.execute(
            f"SELECT count(*), min(url) FROM pages WHERE outcome='{STORED}' AND waits>0 HAVING count(*)>0"
        ):
            count(f"{STORED}: after_waiting", number, url, "the host had answered 429 or 503")
        return sorted(rows.values(), key=lambda row: str(row["outcome"]))

    def close(self) -> None:
        """Close the database."""
        self._db.close()

"""How a crawl went, as rows for a report: outcomes with an example of each, and what a refresh changed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from llm_core.data.web.job import CrawlJob
from llm_core.data.web.ledger import Diff
from llm_core.data.web.outcomes import TEMPORARY

_NO_WAY = {
    "unresolvable": "its name cannot be resolved",
    "refused": "it refuses the connection",
    "timeout": "it does not answer",
    "connection_lost": "it drops the connection",
}


@dataclass(frozen=True, slots=True)
class Crawled:
    """One source's crawl: the job, its pages, how its URLs ended (`ledger.Ledger.outcomes`), and what changed."""

    source: str
    job: CrawlJob
    pages: int
    outcomes: Sequence[dict[str, Any]]
    diff: Diff


def unreached(outcomes: Iterable[dict[str, Any]], answered: int) -> str | None:
    """Why nobody answered, in words; None if somebody did, or if nothing was asked."""
    silent = [row for row in outcomes if row["outcome"] in TEMPORARY]
    if answered or not silent:
        return None
    row = max(silent, key=lambda row: row["count"])
    why = row["detail"] or _NO_WAY.get(row["outcome"], row["outcome"])
    return f"{row['url']} cannot be reached ({why}); is there a network?"


def how_it_ended(outcomes: Iterable[dict[str, Any]]) -> str:
    """The outcomes in a sentence, each with the reason or URL of its example."""
    parts = [f"{row['outcome']}: {row['count']}, as {row['detail'] or row['url']}" for row in outcomes]
    return "; ".join(parts) or "no page"


def endings(crawled: Crawled) -> dict[str, int]:
    """URLs by outcome, without the pages that were stored."""
    return {row["outcome"]: row["count"] for row in crawled.outcomes if not row["outcome"].startswith("stored")}


def rows_of_outcomes(crawls: Iterable[Crawled]) -> list[dict[str, Any]]:
    """Rows {source, outcome, count, url, detail}."""
    return [{"source": crawled.source, **row} for crawled in crawls for row in crawled.outcomes]


def rows_of_diffs(crawls: Iterable[Crawled]) -> list[dict[str, Any]]:
    """Rows {source, change, url} of pages that are new, changed or gone; a last one says how many are not listed."""
    rows = []
    for crawled in crawls:
        for change, urls in crawled.diff.urls.items():
            rows += [{"source": crawled.source, "change": change, "url": url} for url in urls]
            if more := crawled.diff.counts[change] - len(urls):
                rows.append({"source": crawled.source, "change": change, "url": f"... and {more:,} more"})
    return rows


def counts_of_diffs(crawls: Iterable[Crawled]) -> dict[str, float]:
    """Pages that are new, changed, gone and unchanged, over all sources."""
    total: Counter[str] = Counter()
    for crawled in crawls:
        total.update(crawled.diff.counts)
    return {change: float(total[change]) for change in ("new", "changed", "gone", "unchanged")}

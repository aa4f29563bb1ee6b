"""How the fetching of a URL can end: the names that stand in the store and in the report."""

from __future__ import annotations

from typing import Any

STORED = "stored"
GONE = "gone"
DENIED, ROBOTS, CRAWL_DELAY = "denied", "robots", "crawl_delay"
UNREACHABLE_ROBOTS, PRIVATE = "robots_unreachable", "private_address"
UNRESOLVABLE, REFUSED, TIMEOUT, LOST = "unresolvable", "refused", "timeout", "connection_lost"
REDIRECT, REDIRECT_LOOP, REDIRECT_OUT, REDIRECTS = "redirect", "redirect_loop", "redirect_offsite", "too_many_redirects"
TYPE, TOO_LARGE, TRUNCATED, HEADERS = "type", "too_large", "truncated", "header_too_large"
BAD_ENCODING, ATTRIBUTES, SITEMAP, BAD_SITEMAP = "bad_encoding", "too_many_attributes", "sitemap", "sitemap_failed"
BUDGET, POSTPONED, DEPTH = "budget", "postponed", "depth"

NOT_ASKED = (DENIED, DEPTH, ROBOTS, UNREACHABLE_ROBOTS, CRAWL_DELAY, PRIVATE, UNRESOLVABLE)
"""Outcomes of URLs that no request was sent for: they cost no budget."""
TEMPORARY = (UNREACHABLE_ROBOTS, UNRESOLVABLE, REFUSED, TIMEOUT, LOST, "status 429", "status 503")
"""Outcomes that say nothing about the page: the next run asks again, and a copy in the store stays valid."""
VOID = (
    GONE, REDIRECT, REDIRECT_LOOP, REDIRECT_OUT, REDIRECTS, TYPE, PRIVATE, ATTRIBUTES,
    "noindex", "noarchive", "noai", "noimageai",
)  # fmt: skip
"""Outcomes after which an earlier copy no longer belongs into the table."""

_BY_EXCEPTION = {
    "DownloadTimeoutError": TIMEOUT,
    "DownloadConnectionRefusedError": REFUSED,
    "CannotResolveHostError": UNRESOLVABLE,
    "ResponseDataLossError": TRUNCATED,
    "DownloadCancelledError": TOO_LARGE,
    "DownloadFailedError": LOST,
    "StopDownload": TYPE,
    "BadGzipFile": BAD_ENCODING,
    "EOFError": BAD_ENCODING,
}


class Refusal(Exception):
    """Raised on the way of a request to say how it ends; `outcome` is one of this module's names."""

    def __init__(self, outcome: str, detail: str = "") -> None:
        super().__init__(detail or outcome)
        self.outcome, self.detail = outcome, detail


def outcome_of(error: BaseException) -> tuple[str, str]:
    """(outcome, detail) of an exception that ended a request."""
    if isinstance(error, Refusal):
        return error.outcome, error.detail
    if _caused_by(error, "HeaderTooLarge"):
        return HEADERS, ""
    name = type(error).__name__
    if name in _BY_EXCEPTION:
        return _BY_EXCEPTION[name], "" if name in ("DownloadCancelledError", "StopDownload") else str(error)[:200]
    return f"error {name}", str(error)[:200]


def _caused_by(error: BaseException | None, name: str) -> bool:
    """Whether an exception of that name stands behind an error: as its cause, or among Twisted's `reasons`."""
    seen: list[Any] = [error]
    while seen:
        current = seen.pop()
        if current is None:
            continue
        if type(current).__name__ == name:
            return True
        seen += [current.__cause__, *(reason.value for reason in getattr(current, "reasons", []) or [])]
    return False

"""Commands that look at one thing and change nothing: a URL before it is crawled, a page's text, what was dropped."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llm_core.contract import BadInput
from llm_core.settings.acquire import AcquireConfig
from llm_core.settings.web import WebSource
from tasks.workspace import Workspace


def crawl_check(space: Workspace, url: str, source: str | None) -> dict[str, Any]:
    """What the crawl of a web source would do with a URL; only robots.txt is fetched.

    `source` is the source's name; without it the web source that starts at the URL's host, else the default settings.
    """
    from dataclasses import asdict

    from llm_core.data.acquire import web_job
    from llm_core.data.web.check import check
    from llm_core.data.web.urls import canonical, host_of

    config = space.config("acquire")
    assert isinstance(config, AcquireConfig)
    sources = [found for found in config.sources if isinstance(found, WebSource)]
    if source is not None and source not in {found.name for found in sources}:
        known = ", ".join(found.name for found in sources) or "none"
        raise BadInput(f"--source {source}: no such web source in params.yaml; there are: {known}")
    host = host_of(canonical(url) or url)
    chosen = [
        found
        for found in sources
        if (found.name == source if source else host in {host_of(start) for start in found.start} | set(found.hosts))
    ]
    job = web_job(chosen[0], config.store / chosen[0].name) if chosen else None
    return {"source": chosen[0].name if chosen else None} | asdict(check(url, job))


def dropped(space: Workspace, reason: str | None, limit: int | None) -> Iterator[dict[str, Any]]:
    """Rows that `clean` dropped for a reason, all without one; at most `limit`."""
    from itertools import islice

    from llm_core.data.corpus import dropped_rows

    corpus = space.product("corpus")
    if not (corpus / "dropped.parquet").is_file():
        raise BadInput("status: there is no corpus yet; `groundup run clean` makes one")
    yield from islice(dropped_rows(corpus, reason), limit)


def lines(row: dict[str, Any]) -> str:
    """A row as aligned `name  value` lines."""
    width = max(len(name) for name in row)
    return "\n".join(f"{name:{width}}  {value}" for name, value in row.items() if value not in (None, "", (), []))

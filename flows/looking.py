"""Commands that look at one thing and change nothing: a URL before it is crawled, a page's text, what was dropped."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llm_core.artifacts import MANIFEST
from llm_core.contract import BadInput
from llm_core.settings.acquire import AcquireConfig
from llm_core.settings.web import WebSource
from llm_core.storage import products
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


def extract(space: Workspace, target: str, rule: str | None, url: str | None) -> dict[str, Any]:
    """What a page's rule, and each engine, make of it. `target` is a file, a URL that was crawled, or any other URL.

    `url` tells where a file's page stands in the web, which finds its rule. Raises `BadInput` for what cannot be had.
    """
    from dataclasses import asdict

    from llm_core.data.tryout import try_page

    if "://" in target:
        data, content_type = _crawled(space, target) or _fetched(space, target)
        url = url or target
    else:
        path = Path(target)
        if not path.is_file():
            raise BadInput(f"extract: {target} is no file and no URL")
        data, content_type = path.read_bytes(), "text/plain" if path.suffix in (".txt", ".md") else None
    return asdict(try_page(data, url or "", content_type, space.root / "rules", rule))


def _crawled(space: Workspace, url: str) -> tuple[bytes, str | None] | None:
    """(bytes, content type) of a page of data/raw, if it is there."""
    import pyarrow.dataset as ds

    from llm_core.data.extract import MAX_BYTES
    from llm_core.data.prepare import recorded
    from llm_core.data.web.urls import canonical

    raw = space.product("raw")
    if products.store_of(raw) is not None:
        raw = products.local(raw, [name for name in products.blobs(raw) if "/pages" in name or "/warc/" in name])
    for table in sorted(raw.glob("*/pages.parquet")):
        found = ds.dataset(table).to_table(filter=ds.field("url") == (canonical(url) or url)).to_pylist()
        if found:
            data = recorded(found[0], table.parent / "warc", MAX_BYTES)
            return (data, found[0]["content_type"]) if data is not None else None
    return None


def _fetched(space: Workspace, url: str) -> tuple[bytes, str | None]:
    """The page itself, if a crawl would be allowed to have it."""
    from llm_core.data.web.addresses import AddressPolicy
    from llm_core.data.web.check import fetch
    from llm_core.data.web.job import CrawlJob

    found = crawl_check(space, url, None)
    if not found["allowed"]:
        raise BadInput(f"extract: {url} would not be crawled: {found['why']}")
    job = CrawlJob(store="", start=(url,), contact="groundup extract")
    status, data = fetch(found["canonical"], AddressPolicy(()), job.timeout, job.user_agent, job.max_bytes)
    if status != 200:
        raise BadInput(f"extract: {url} answers with status {status}")
    return data, None


def dropped(space: Workspace, reason: str | None, limit: int | None) -> Iterator[dict[str, Any]]:
    """Rows that `clean` dropped for a reason, all without one; at most `limit`."""
    from itertools import islice

    from llm_core.data.corpus import dropped_rows

    corpus = space.product("corpus")
    if not (corpus / MANIFEST).is_file():
        raise BadInput("status: there is no corpus yet; `groundup run clean` makes one")
    yield from islice(dropped_rows(corpus, reason), limit)


def plan(
    project: Path,
    hours: float | None,
    flops: float | None,
    tokens: float | None,
    device: str | None,
    apply: str | None,
    *,
    as_json: bool,
) -> None:
    """Print what a budget buys; with `apply` also write it as a preset."""
    from rich.console import Console

    from llm_core.scaling.planner import Budget
    from tasks import planning

    budget = Budget(hours=hours, flops=flops, tokens=tokens)
    found = planning.plan(project, budget, device)
    if as_json:
        print(planning.as_json(found))
    else:
        planning.show(found, Console())
    if apply:
        path = planning.apply(project, found, apply)
        Console(stderr=True).print(f"written: {path}; groundup run --preset {apply}", highlight=False)


def lines(row: dict[str, Any]) -> str:
    """A row as aligned `name  value` lines."""
    width = max(len(name) for name in row)
    return "\n".join(f"{name:{width}}  {value}" for name, value in row.items() if value not in (None, "", (), []))


def tryout(found: dict[str, Any]) -> str:
    """What `extract` found, for reading: metadata, each engine in a line, then the text."""
    about = {name: found[name] for name in ("url", "by", "rule", "problem")} | found["metadata"]
    engines = [
        f"{trial['engine']:20} {len(trial['text']):>8,} characters {1000 * trial['seconds']:7.0f} ms  "
        + (trial["problem"] or trial["text"][:60].replace("\n", " "))
        for trial in found["trials"]
    ]
    return "\n\n".join(part for part in (lines(about), "\n".join(engines), found["text"]) if part)

"""Crawl stores of a workspace that has the raw data but never crawled: made from the data before acquire runs."""

from __future__ import annotations

from pathlib import Path

from llm_core.data.web.seed import SEEDED, seed
from llm_core.settings.acquire import AcquireConfig, EmbeddedSource
from llm_core.settings.web import WebSource
from llm_core.storage import products
from tasks.workspace import Workspace


def seed_stores(space: Workspace) -> None:
    """Give every crawled source without a store one that holds what data/raw holds; DVC removes data/raw afterwards."""
    config = space.config("acquire")
    assert isinstance(config, AcquireConfig)
    for source in config.sources:
        store = space.root / config.store / source.name
        if isinstance(source, WebSource) and not (store / "frontier.sqlite").exists():
            seed(_snapshot(space, source.name), store)
        elif isinstance(source, EmbeddedSource) and not (store.is_dir() and any(store.iterdir())):
            store.mkdir(parents=True, exist_ok=True)
            seed(_snapshot(space, source.name), store / SEEDED)


def _snapshot(space: Workspace, source: str) -> Path:
    """What data/raw has of a source, on this machine."""
    raw = space.product("raw")
    if products.store_of(raw) is None:
        return raw / source
    return products.local(raw, [name for name in products.blobs(raw) if name.startswith(f"{source}/")]) / source

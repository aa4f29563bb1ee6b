"""Crawl stores of a workspace that has the raw data but never crawled: made from the data before acquire runs."""

from __future__ import annotations

from llm_core.data.web.seed import SEEDED, seed
from llm_core.settings.acquire import AcquireConfig, EmbeddedSource
from llm_core.settings.web import WebSource
from tasks.workspace import Workspace


def seed_stores(space: Workspace) -> None:
    """Give every crawled source without a store one that holds what data/raw holds; DVC removes data/raw afterwards."""
    config = space.config("acquire")
    assert isinstance(config, AcquireConfig)
    for source in config.sources:
        snapshot, store = space.product("raw") / source.name, space.root / config.store / source.name
        if isinstance(source, WebSource):
            seed(snapshot, store)
        elif isinstance(source, EmbeddedSource) and not (store.is_dir() and any(store.iterdir())):
            store.mkdir(parents=True, exist_ok=True)
            seed(snapshot, store / SEEDED)

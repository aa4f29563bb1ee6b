"""What the crawl's own process is told, as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llm_core.data.web.urls import Scope, canonical, host_of

AGENT = "groundup"


@dataclass(frozen=True, slots=True)
class CrawlJob:
    """One crawl into one store. Sizes are bytes, times seconds."""

    store: str
    start: tuple[str, ...]
    contact: str
    hosts: tuple[str, ...] = ()
    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    max_pages: int = 1_000
    max_pages_per_host: int | None = None
    depth: int = 20
    delay: float = 1.0
    concurrency: int = 1
    timeout: float = 20.0
    max_bytes: int = 5_000_000
    proxy: str | None = None
    refresh: bool = False

    @property
    def user_agent(self) -> str:
        """The name under which the crawl shows itself, with the contact."""
        return f"{AGENT}/0.1 (+{self.contact})"

    def admits(self) -> Callable[[str], bool]:
        """Which canonical URLs belong to this crawl; a start URL always does."""
        starts = frozenset(url for url in map(canonical, self.start) if url)
        scope = Scope([*map(host_of, starts), *self.hosts], self.allow, self.deny)
        return lambda url: url in starts or scope.admits(url)

    def write(self, path: Path) -> None:
        """Save as JSON."""
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, path: Path) -> CrawlJob:
        """Load what `write` saved."""
        values: dict[str, Any] = json.loads(path.read_text())
        known: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
        return cls(**known)

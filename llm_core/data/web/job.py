"""What the crawl's own process is told, as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llm_core.data import forget_list
from llm_core.data.web.frontier import Budgets
from llm_core.data.web.urls import Scope, canonical, host_of

AGENT = "groundup"


@dataclass(frozen=True, slots=True)
class CrawlJob:
    """One crawl into one store. Sizes are bytes, times seconds; llm_core/settings/web.py says what each is for."""

    store: str
    start: tuple[str, ...]
    contact: str
    hosts: tuple[str, ...] = ()
    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    allow_private: tuple[str, ...] = ()
    respect: tuple[str, ...] = ("noindex", "noarchive", "noai", "nofollow")
    sitemaps: str = "robots"
    max_pages: int = 1_000
    max_pages_per_host: int | None = None
    max_requests: int | None = None
    depth: int = 20
    delay: float = 1.0
    max_crawl_delay: float = 60.0
    max_retry_after: float = 120.0
    concurrency: int = 1
    total_concurrency: int = 16
    target_concurrency: float = 1.0
    timeout: float = 20.0
    max_bytes: int = 5_000_000
    proxy: str | None = None
    refresh: bool = False
    forget: str | None = None
    """File of the forget list: what it names is not asked for, and not in a snapshot."""

    @property
    def user_agent(self) -> str:
        """The name under which the crawl shows itself, with the contact."""
        return f"{AGENT}/0.1 (+{self.contact})"

    @property
    def budgets(self) -> Budgets:
        """The frontier's limits; without `max_requests`, three for each page and a thousand more."""
        return Budgets(
            max_pages=self.max_pages,
            max_pages_per_host=self.max_pages_per_host,
            max_requests=self.max_requests or 3 * self.max_pages + 1_000,
            per_host=self.concurrency,
            in_all=max(self.total_concurrency, self.concurrency),
            depth=self.depth,
        )

    def starts(self) -> tuple[str, ...]:
        """The canonical start URLs."""
        return tuple(url for url in map(canonical, self.start) if url)

    def scope(self) -> Scope:
        """Which URLs belong to this crawl, start URLs aside."""
        return Scope([*map(host_of, self.starts()), *self.hosts], self.allow, self.deny)

    def admits(self) -> Callable[[str], bool]:
        """Which canonical URLs belong to this crawl; a start URL does, unless it is to be forgotten."""
        starts, scope = frozenset(self.starts()), self.scope()
        forgotten = forget_list.read(Path(self.forget) if self.forget else None)
        return lambda url: (url in starts or scope.admits(url)) and not forgotten.names(url)

    def write(self, path: Path) -> None:
        """Save as JSON."""
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, path: Path) -> CrawlJob:
        """Load what `write` saved."""
        values: dict[str, Any] = json.loads(path.read_text())
        known: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
        return cls(**known)

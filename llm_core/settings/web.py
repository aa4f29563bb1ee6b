"""The web as a source of section `acquire`: what is crawled, and how politely."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from llm_core.contract import Config

Slug = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,39}$")]


class WebSource(Config):
    """Pages of web sites, crawled politely: robots.txt is obeyed, and the user agent names a contact."""

    kind: Literal["web"]
    name: Slug
    """Name of the source: letters, digits, - and _; unique among the sources."""
    licence: str = "unknown"
    """SPDX identifier of the licence where the pages name none."""
    start: tuple[str, ...] = Field(min_length=1)
    """URLs to start from, always fetched. Only their hosts are visited, unless `hosts` names more."""
    contact: str = Field(min_length=3)
    """E-mail address or URL that the user agent shows to the site's owner."""
    hosts: tuple[str, ...] = ()
    """Further hosts that may be visited."""
    allow: tuple[str, ...] = ()
    """Regular expressions, searched in the URL: only pages that match one are fetched; empty allows all."""
    deny: tuple[str, ...] = ()
    """Regular expressions, searched in the URL: pages that match one are never fetched."""
    max_pages: int = Field(default=1_000, ge=1)
    """Pages to fetch in all, 1 or more."""
    max_pages_per_host: int | None = Field(default=None, ge=1)
    """Pages to fetch from one host, 1 or more; blank sets no other limit than `max_pages`."""
    depth: int = Field(default=20, ge=0)
    """Links to follow from a start URL, 0 or more."""
    delay_seconds: float = Field(default=1.0, ge=0, le=3600)
    """Seconds between two requests to a host, 0 to 3600; a larger Crawl-delay of its robots.txt wins."""
    concurrency: int = Field(default=1, ge=1, le=64)
    """Requests under way to one host at the same time, 1 to 64."""
    timeout_seconds: float = Field(default=20.0, gt=0, le=600)
    """Seconds that one download may take, up to 600."""
    max_bytes: int = Field(default=5_000_000, ge=1_000, le=100_000_000)
    """Largest body that is kept, bytes after decompression, 1,000 to 100,000,000."""

    @field_validator("start")
    @classmethod
    def _absolute(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        for url in urls:
            if not url.startswith(("http://", "https://")):
                raise ValueError(f"{url!r} is not an http or https URL")
        return urls

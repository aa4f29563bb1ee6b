"""The web as a source of section `acquire`: what is crawled, and how politely."""

from __future__ import annotations

import ipaddress
import re
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
    weight: float = Field(default=1.0, gt=0, le=1_000)
    """How many times over its training pages stand in the training stream: above 0, up to 1,000; 0.5 takes half."""
    start: tuple[str, ...] = Field(min_length=1)
    """URLs to start from, always fetched. Only their hosts are visited, unless `hosts` names more."""
    contact: str = Field(min_length=3)
    """E-mail address or URL that the user agent shows to the site's owner."""
    hosts: tuple[str, ...] = ()
    """Further hosts that may be visited, with the port where it is not the usual one."""
    allow: tuple[str, ...] = ()
    """Regular expressions, searched in the URL: only pages that match one are fetched; empty allows all."""
    deny: tuple[str, ...] = ()
    """Regular expressions, searched in the URL: pages that match one are never fetched."""
    allow_private: tuple[str, ...] = ()
    """What may be visited although it is not public: hosts as they stand in the URL (wiki.example, 127.0.0.1: whatever
    that very name leads to) or networks (10.0.0.0/8: whatever name leads into it). Every other loopback, private,
    link-local or otherwise inner address is refused, after the name was looked up and after every redirect."""
    respect: tuple[Literal["noindex", "noarchive", "noai", "noimageai", "nofollow"], ...] = (
        "noindex", "noarchive", "noai", "nofollow",
    )  # fmt: skip
    """Directives of robots meta elements and X-Robots-Tag headers that are honoured: a page with one of them is not
    stored; with nofollow its links are not followed. The others are written into the table's column `robots`."""
    sitemaps: Literal["none", "robots", "guess"] = "robots"
    """Sitemaps that are read: those that robots.txt names, with guess also /sitemap.xml where it names none."""
    max_pages: int = Field(default=1_000, ge=1)
    """Pages to store in all, 1 or more."""
    max_pages_per_host: int | None = Field(default=None, ge=1)
    """Pages to store from one host, 1 or more; blank sets no other limit than `max_pages`."""
    max_requests: int | None = Field(default=None, ge=1)
    """Requests to send in all, 1 or more, whatever comes back; blank: three times `max_pages` and a thousand more."""
    depth: int = Field(default=20, ge=0)
    """Links to follow from a start URL, 0 or more."""
    delay_seconds: float = Field(default=1.0, ge=0, le=3600)
    """Least seconds between two requests to a host, 0 to 3600; a larger Crawl-delay of its robots.txt wins."""
    max_crawl_delay_seconds: float = Field(default=60.0, ge=0, le=3600)
    """Longest Crawl-delay that is kept to, 0 to 3600 seconds; a host that wants more is not crawled."""
    max_retry_after_seconds: float = Field(default=120.0, ge=0, le=86_400)
    """Longest Retry-After of 429 and 503 that is waited for, 0 to 86,400 seconds; the pages of a host that asks for
    more, or puts the crawl off five times in a row, are left for the next run."""
    concurrency: int = Field(default=1, ge=1, le=64)
    """Requests under way to one host at the same time, 1 to 64."""
    total_concurrency: int = Field(default=16, ge=1, le=256)
    """Requests under way to all hosts together, 1 to 256; never less than `concurrency`."""
    target_concurrency: float = Field(default=1.0, ge=0, le=64)
    """Requests that AutoThrottle aims to keep under way at a host, 0 to 64: the delay grows with the time a host needs
    to answer. 0, or a `delay_seconds` of 0, switches it off."""
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

    @field_validator("allow", "deny")
    @classmethod
    def _patterns(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is no regular expression: {error}") from error
        return patterns

    @field_validator("allow_private")
    @classmethod
    def _networks(cls, entries: tuple[str, ...]) -> tuple[str, ...]:
        for entry in entries:
            if "/" in entry:
                ipaddress.ip_network(entry, strict=False)
        return entries

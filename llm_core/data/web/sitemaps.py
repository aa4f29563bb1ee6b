"""Sitemaps: XML, an index of further ones, or plain text; also compressed. Every size has a limit."""

from __future__ import annotations

import gzip
import zlib
from io import BytesIO
from typing import NamedTuple

from lxml import etree

from llm_core.data.web.urls import canonical

MAX_BYTES = 50_000_000
"""Bytes of one sitemap after decompression (the protocol's own limit)."""
MAX_URLS = 50_000
"""URLs of one sitemap (the protocol's own limit)."""
MAX_SITEMAPS = 1_000
"""Sitemaps that one crawl reads."""
MAX_NESTING = 2
"""How deep an index may name further indexes."""
_BLOCK = 1 << 20


class BadSitemap(ValueError):
    """A sitemap that cannot be read, or that is larger than allowed."""


class Sitemap(NamedTuple):
    """Canonical URLs of pages, and of further sitemaps where it is an index."""

    pages: list[str]
    sitemaps: list[str]


def read_sitemap(body: bytes) -> Sitemap:
    """Parse a sitemap. No entity is expanded and no document type is loaded. Raises `BadSitemap`."""
    body = _inflated(body)
    if not body.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        return Sitemap(_unique(body.decode("utf-8", "replace").split()[:MAX_URLS]), [])
    pages: list[str] = []
    indexes: list[str] = []
    try:
        parser = etree.iterparse(
            BytesIO(body), events=("end",), recover=True, resolve_entities=False, no_network=True, load_dtd=False,
            huge_tree=False, remove_comments=True, remove_pis=True,
        )  # fmt: skip
        for _, element in parser:
            kind = _name(element)
            if kind in ("url", "sitemap"):
                where = next((child.text for child in element if _name(child) == "loc" and child.text), None)
                if where:
                    (pages if kind == "url" else indexes).append(where.strip())
                element.clear()
                parent = element.getparent()  # none where a broken sitemap has several roots
                while parent is not None and element.getprevious() is not None:
                    del parent[0]
                if len(pages) + len(indexes) >= MAX_URLS:
                    break
    except etree.LxmlError as error:
        raise BadSitemap(f"no XML: {str(error)[:100]}") from error
    return Sitemap(_unique(pages), _unique(indexes))


def _name(element: etree._Element) -> str:
    return element.tag.rpartition("}")[2] if isinstance(element.tag, str) else ""


def _unique(urls: list[str]) -> list[str]:
    return list(dict.fromkeys(url for url in map(canonical, urls) if url))


def _inflated(body: bytes) -> bytes:
    if not body.startswith(b"\x1f\x8b"):
        return body
    blocks, size = [], 0
    try:
        with gzip.open(BytesIO(body)) as file:
            while block := file.read(_BLOCK):
                size += len(block)
                if size > MAX_BYTES:
                    raise BadSitemap(f"larger than {MAX_BYTES:,} bytes when decompressed")
                blocks.append(block)
    except (OSError, EOFError, zlib.error) as error:
        raise BadSitemap(f"no whole gzip file: {error}") from error
    return b"".join(blocks)

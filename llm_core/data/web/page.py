"""What a crawl reads in a page: where it leads, and what its owner allows to be done with it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple
from urllib.parse import urljoin

from lxml import etree

from llm_core.data.web.urls import canonical

DIRECTIVES = ("noindex", "noarchive", "noai", "noimageai", "nofollow")
"""The robots directives that a crawl can honour; `none` stands for noindex and nofollow."""
MAX_LINKS = 10_000
MAX_ATTRIBUTES = 5_000
_LONG_TAG = 16_384
_VALUED = ("unavailable_after", "max-snippet", "max-image-preview", "max-video-preview")
_HREFS = etree.XPath("//a/@href | //area/@href", smart_strings=False)
_METAS = etree.XPath("//meta[@name and @content]")
_BASES = etree.XPath("//base/@href", smart_strings=False)
_QUOTED = re.compile(rb'"[^"]*"|\'[^\']*\'')


class PageFacts(NamedTuple):
    """Canonical URLs in the order of the page, each once, and the directives of its meta elements."""

    links: list[str]
    directives: frozenset[str]


def read_page(body: bytes, base: str, encoding: str | None, agent: str = "") -> PageFacts:
    """Links and robots directives of an HTML page; nothing where it cannot be read. `encoding` None: as it declares."""
    try:
        tree = etree.fromstring(body, etree.HTMLParser(encoding=encoding, no_network=True))
    except (ValueError, LookupError, etree.LxmlError):
        return PageFacts([], frozenset())
    if tree is None:
        return PageFacts([], frozenset())
    directives: set[str] = set()
    for meta in _METAS(tree):
        if meta.get("name").strip().lower() in ("robots", agent):
            directives |= _known(meta.get("content").split(","))
    for href in _BASES(tree)[:1]:
        base = _joined(base, href.strip()) or base
    found: dict[str, None] = {}
    for href in dict.fromkeys(_HREFS(tree)[: 2 * MAX_LINKS]):
        url = canonical(_joined(base, href.partition("#")[0].strip()))
        if url:
            found[url] = None
            if len(found) >= MAX_LINKS:
                break
    return PageFacts(list(found), frozenset(directives))


def links(body: bytes, base: str, encoding: str | None) -> list[str]:
    """Canonical URLs that an HTML page links to, each once, in the order of the page; none if it says nofollow."""
    facts = read_page(body, base, encoding)
    return [] if "nofollow" in facts.directives else facts.links


def _joined(base: str, href: str) -> str:
    if not href:
        return ""
    if href[:8].lower().startswith(("http://", "https://")):
        return href
    try:
        return urljoin(base, href)
    except ValueError:
        return ""


def header_directives(values: Iterable[str], agent: str) -> frozenset[str]:
    """The directives of X-Robots-Tag headers that are meant for everyone or for this crawler."""
    found: set[str] = set()
    for value in values:
        name, colon, rest = value.partition(":")
        if colon and "," not in name and name.strip().lower() not in _VALUED:
            if name.strip().lower() != agent:
                continue
            value = rest
        found |= _known(value.split(","))
    return frozenset(found)


def _known(words: Iterable[str]) -> set[str]:
    named = {word.strip().lower() for word in words}
    if "none" in named:
        named |= {"noindex", "nofollow"}
    return named & set(DIRECTIVES)


def too_many_attributes(body: bytes) -> bool:
    """Whether some tag seems to have thousands of attributes, which HTML parsers need minutes for (it is quadratic)."""
    if len(body) < _LONG_TAG:
        return False
    for part in body.split(b">"):
        if len(part) >= _LONG_TAG and (start := part.find(b"<")) >= 0:
            tag = _QUOTED.sub(b" ", part[start:])
            if len(tag.replace(b"/", b" ").split()) > MAX_ATTRIBUTES:
                return True
    return False


def declared_encoding(content_type: str, body: bytes) -> tuple[str | None, bool]:
    """(the encoding to read a page in, whether the one its header declares is wrong); None: what the page declares."""
    found = re.search(r"charset\s*=\s*[\"']?([\w.:-]+)", content_type, re.IGNORECASE)
    declared = found.group(1).lower() if found else None
    if body.isascii():
        return declared, False
    if declared and declared.startswith(("utf-16", "utf16", "utf-32")):
        return declared, False
    try:
        body.decode("utf-8")
    except UnicodeDecodeError:
        return (None if declared in ("utf-8", "utf8") else declared), declared in ("utf-8", "utf8")
    return "utf-8", declared is not None and declared not in ("utf-8", "utf8")

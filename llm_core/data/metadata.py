"""What a page says about itself: title, date, language, licence, canonical URL, directives for robots.

BeautifulSoup reads them, but only the few elements that can hold them: a search picks these out of the head first, so
that the pass costs a small part of what extraction does. JSON-LD and links marked as licence are taken from the whole
page, since sites put them anywhere.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from bs4 import BeautifulSoup, Tag

HEAD_CHARACTERS = 128_000
JSON_CHARACTERS = 200_000
LICENCE_MENTIONS = 50
_OPENINGS = re.compile(rb"<(!--|script|style|noscript|template|title|meta|link|html)")
_CLOSINGS = {b"!--": b"-->", b"title": b"</title"} | {
    name: b"</" + name for name in (b"script", b"style", b"noscript", b"template")
}
_TELLING = re.compile(
    rb"<title|<html|<link\b[^>]*\brel\s*=[\s\"']*(?:canonical|license)"
    rb"|<meta\b[^>]*(?:title|publish|date|dc\.|dcterms|licen|rights|robots|language|locale|created)"
)
_JSON_LD = re.compile(r"<script\b[^>]*application/ld\+json[^>]*>(.*?)</script", re.IGNORECASE | re.DOTALL)
_TIME = re.compile(r"<time\b[^>]*\bdatetime\s*=\s*[\"']([^\"'>]+)", re.IGNORECASE)
_DATE = re.compile(r"\s*([12]\d{3})[-/.]?([01]\d)[-/.]?([0-3]\d)(?!\d)")


@dataclass(frozen=True, slots=True)
class Metadata:
    """What a page says about itself; None where it says nothing. `date` is YYYY-MM-DD where that can be read."""

    title: str | None = None
    date: str | None = None
    language: str | None = None
    licence: str | None = None
    canonical: str | None = None
    robots: str | None = None


def forbids_indexing(*directives: str | None) -> bool:
    """Whether directives for robots, such as "noindex, nofollow" or "none", ask all of them not to index a page.

    A directive for one robot by name ("googlebot: noindex") is meant for that one.
    """
    parts = [part for text in directives for part in (text or "").lower().split(",") if ":" not in part]
    return any(word in ("noindex", "none") for part in parts for word in re.split(r"[\s;]+", part))


def metadata(html: str) -> Metadata:
    """The metadata of a page. Never fails: what cannot be read is None."""
    # A marked section means nothing in HTML, and Python's parser fails at one that it does not know.
    soup = BeautifulSoup("".join(_telling(html)).replace("<![", "&lt;!["), "html.parser")
    metas: dict[str, str] = {}
    for meta in soup.find_all("meta", content=True):
        name = str(meta.get("property") or meta.get("name") or meta.get("itemprop") or meta.get("http-equiv") or "")
        name, content = name.lower(), str(meta["content"]).strip()
        if name == "robots" and name in metas:
            metas[name] += f",{content}"
        else:
            metas.setdefault(name, content)

    def first(*names: str) -> str | None:
        return next((metas[name] for name in names if metas.get(name)), None)

    title = soup.title.get_text(" ", strip=True) if soup.title else None
    root = soup.find("html")
    language = str(root.get("lang") or "") if isinstance(root, Tag) else ""
    language = language or first("content-language", "og:locale", "dc.language", "language") or ""
    linked = _linked_data(html)
    date = first("article:published_time", "datepublished", "dc.date", "dc.date.issued", "dcterms.date",
                 "dcterms.created", "date", "pubdate", "publishdate", "og:published_time")  # fmt: skip
    return Metadata(
        title=first("og:title") or title or linked.get("headline") or first("dc.title", "twitter:title"),
        date=_day(date or linked.get("datePublished") or _first_time(html)),
        language=re.split("[-_,]", language.lower().strip())[0] or None,
        licence=_link(soup, "license") or linked.get("license") or first("license", "dc.rights", "dcterms.license"),
        canonical=_link(soup, "canonical"),
        robots=first("robots"),
    )


def _telling(html: str) -> Iterator[str]:
    """The elements of the head that may say something, and links of the body that are marked as the licence."""
    head = html[:HEAD_CHARACTERS].encode("utf-8", "surrogatepass")
    lower = head.lower()  # of bytes: ASCII alone, so that places stay where they are
    end = min(place for place in (lower.find(b"</head"), lower.find(b"<body"), len(lower)) if place >= 0)
    place = 0
    while found := _OPENINGS.search(lower, place, end):
        start, name = found.start(), found[1]
        stop = lower.find(_CLOSINGS.get(name, b">"), found.end())
        place = stop if stop >= 0 else end
        if name in (b"title", b"meta", b"link", b"html") and _TELLING.match(lower, start, place):
            piece = head[start:place].decode("utf-8", "replace")
            yield f"{piece}</title>" if name == b"title" else f"{piece}>"
    place = 0
    for _ in range(LICENCE_MENTIONS):
        place = html.find("license", place)
        if place < 0:
            break
        start, stop = html.rfind("<", max(0, place - 1000), place), html.find(">", place, place + 1000)
        if start >= 0 and stop >= 0 and html[start : start + 2].lower() in ("<a", "<l"):
            yield f"{html[start : stop + 1]}</a>"
        place += 1


def _link(soup: BeautifulSoup, relation: str) -> str | None:
    link = soup.find(["link", "a"], rel=relation, href=True)
    return str(link["href"]).strip() or None if isinstance(link, Tag) else None


def _linked_data(html: str) -> dict[str, str]:
    """headline, datePublished and license of a page's JSON-LD, each as first found."""
    found: dict[str, str] = {}
    if "ld+json" not in html:
        return found
    for block in _JSON_LD.finditer(html):
        text = block[1]
        if len(text) > JSON_CHARACTERS or not ("datePublished" in text or "license" in text):
            continue
        try:
            data = json.loads(text, strict=False)
        except (ValueError, RecursionError):
            continue  # sites write broken JSON; there is nothing to be read from it
        for item in _items(data):
            for name in ("headline", "datePublished", "license"):
                value = item.get(name)
                value = value.get("url") if isinstance(value, dict) else value
                if isinstance(value, str) and value.strip():
                    found.setdefault(name, value.strip())
    return found


def _items(data: Any) -> Iterator[dict[str, Any]]:
    """A JSON-LD document's items, those of its @graph included."""
    for item in data if isinstance(data, list) else [data]:
        if isinstance(item, dict):
            yield item
            if isinstance(item.get("@graph"), list):
                yield from (inner for inner in item["@graph"] if isinstance(inner, dict))


def _first_time(html: str) -> str | None:
    place = html.find("<time")
    found = _TIME.search(html, place) if place >= 0 else None
    return found[1] if found else None


def _day(date: str | None) -> str | None:
    """YYYY-MM-DD if the date begins like that, else what the page says, at most 40 characters."""
    if date is None:
        return None
    found = _DATE.match(date)
    return "-".join(found.groups()) if found else date.strip()[:40] or None

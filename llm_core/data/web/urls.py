"""URLs: one spelling for one page, and which pages a crawl may visit."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from urllib.parse import urljoin, urlsplit

from lxml import html
from w3lib.url import canonicalize_url, url_query_cleaner

TRACKING = ("gclid", "dclid", "fbclid", "msclkid", "mc_cid", "mc_eid", "igshid", "yclid", "_hsenc", "_hsmi")
_TRACKING = re.compile(r"[?&](utm_|" + "|".join(TRACKING) + r")")
_BINARY = re.compile(
    r"\.(7z|apk|avi|bmp|bz2|css|dmg|docx?|eot|exe|gif|gz|ico|iso|jpe?g|js|m4[av]|mp[34]|mov|ogg|otf|pdf|png|pptx?|rar"
    r"|svg|tar|tgz|tiff?|ttf|wav|webm|webp|whl|woff2?|xlsx?|xz|zip)$",
    re.IGNORECASE,
)


@lru_cache(100_000)
def canonical(url: str) -> str | None:
    """The URL as it is stored: no fragment, tracking parameters or default port, host in lower case, query sorted.

    None for what is no http or https URL.
    """
    url = url.partition("#")[0].strip()
    if not url[:8].lower().startswith(("http://", "https://")):
        return None
    if _TRACKING.search(url):
        names = {pair.split("=")[0] for pair in urlsplit(url).query.split("&")}
        drop = [name for name in names if name.startswith("utm_") or name in TRACKING]
        url = url_query_cleaner(url, drop, remove=True, keep_fragments=False)
    try:
        parts = urlsplit(canonicalize_url(url))
        port = parts.port
    except ValueError:
        return None
    host = (parts.hostname or "").rstrip(".")
    if not host:
        return None
    if port and port != {"http": 80, "https": 443}[parts.scheme]:
        host = f"{host}:{port}"
    result: str = parts._replace(netloc=host, path=parts.path or "/", fragment="").geturl()
    return result


def host_of(url: str) -> str:
    """The host of a URL in lower case, with its port where that is not the default."""
    return urlsplit(url).netloc.lower().rpartition("@")[2]


class Scope:
    """Which URLs a crawl may visit: by host, pattern and file type."""

    def __init__(self, hosts: Iterable[str], allow: Iterable[str], deny: Iterable[str]) -> None:
        self.hosts = frozenset(host.lower() for host in hosts)
        self._allow = [re.compile(pattern) for pattern in allow]
        self._deny = [re.compile(pattern) for pattern in deny]

    def admits(self, url: str) -> bool:
        """Whether a canonical URL may be fetched."""
        if host_of(url) not in self.hosts or _BINARY.search(urlsplit(url).path):
            return False
        if any(pattern.search(url) for pattern in self._deny):
            return False
        return not self._allow or any(pattern.search(url) for pattern in self._allow)


def links(body: bytes, base: str, encoding: str) -> list[str]:
    """Canonical URLs that an HTML page links to, each once, in the order of the page; none if it says nofollow."""
    try:
        tree = html.document_fromstring(body, parser=html.HTMLParser(encoding=encoding))
    except (ValueError, html.etree.LxmlError, LookupError):
        return []
    if any("nofollow" in value.lower() for value in tree.xpath("//meta[@name='robots']/@content")):
        return []
    for href in tree.xpath("//base/@href")[:1]:
        base = urljoin(base, href.strip())
    found: dict[str, None] = {}
    for href in dict.fromkeys(href.partition("#")[0].strip() for href in tree.xpath("//a/@href | //area/@href")):
        try:
            url = canonical(urljoin(base, href)) if href else None
        except ValueError:
            continue
        if url:
            found[url] = None
    return list(found)

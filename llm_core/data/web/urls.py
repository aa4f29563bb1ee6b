"""URLs: one spelling for one page, and which pages a crawl may visit."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from urllib.parse import urlsplit

from w3lib.url import canonicalize_url, url_query_cleaner

MAX_LENGTH = 2_000
"""Characters of the longest URL that is followed: longer ones are made by traps."""
TRACKING = frozenset(
    (
        "gclid", "dclid", "gclsrc", "gbraid", "wbraid", "fbclid", "msclkid", "twclid", "ttclid", "yclid", "li_fat_id",
        "mc_cid", "mc_eid", "igshid", "_hsenc", "_hsmi", "mkt_tok", "oly_anon_id", "oly_enc_id", "vero_id", "s_cid",
        "_openstat", "wickedid", "_ga", "_gl",
    )
)  # fmt: skip
_TRACKING = re.compile(r"[?&](utm_|" + "|".join(map(re.escape, sorted(TRACKING))) + r")", re.IGNORECASE)
_PLAIN = re.compile(
    r"https?://[a-z0-9][a-z0-9.-]*[a-z0-9](?::(?!80/|443/)(?:[1-9][0-9]{0,3}|[1-5][0-9]{4}))?/[A-Za-z0-9_~/-]*(?:\.[a-z]{2,5})?"
)
_BINARY = re.compile(
    r"\.(7z|apk|avi|bmp|bz2|css|dmg|docx?|eot|exe|gif|gz|ico|iso|jpe?g|js|m4[av]|mp[34]|mov|ogg|otf|pdf|png|pptx?|rar"
    r"|svg|tar|tgz|tiff?|ttf|wav|webm|webp|whl|woff2?|xlsx?|xz|zip)$",
    re.IGNORECASE,
)


@lru_cache(10_000)
def canonical(url: str) -> str | None:
    """The URL as it is stored: RFC 3986's normal form, without what does not change the page.

    No fragment, user, tracking parameter, default port or dot segment; scheme and host in lower case, international
    names in ASCII, percent-encoding only where it is needed, query parameters sorted. None for what is no http or
    https URL with a host.
    """
    url = url.strip()
    if _PLAIN.fullmatch(url):
        return url
    url = url.partition("#")[0].strip()
    if not url[:8].lower().startswith(("http://", "https://")):
        return None
    if _TRACKING.search(url):
        names = {pair.split("=")[0] for pair in urlsplit(url).query.split("&")}
        drop = [name for name in names if name.lower().startswith("utm_") or name.lower() in TRACKING]
        url = url_query_cleaner(url, drop, remove=True, keep_fragments=False)
    try:
        parts = urlsplit(canonicalize_url(url))
        port = parts.port
    except ValueError:
        return None
    host = _ascii((parts.hostname or "").rstrip("."))
    if not host:
        return None
    if ":" in host:
        host = f"[{host}]"
    if port and port != {"http": 80, "https": 443}[parts.scheme]:
        host = f"{host}:{port}"
    result: str = parts._replace(netloc=host, path=without_dots(parts.path or "/"), fragment="").geturl()
    return result


def _ascii(host: str) -> str:
    try:
        return host.encode("idna").decode() if not host.isascii() else host
    except UnicodeError:
        return ""


def without_dots(path: str) -> str:
    """A path without `.` and `..` segments (RFC 3986, 5.2.4)."""
    if "/." not in path:
        return path
    kept: list[str] = []
    *folders, last = path.split("/")
    for segment in folders:
        if segment == "..":
            del kept[max(1, len(kept) - 1) :]
        elif segment != ".":
            kept.append(segment)
    if last == "..":
        del kept[max(1, len(kept) - 1) :]
    return "/".join([*kept, "" if last in (".", "..") else last]) or "/"


def host_of(url: str) -> str:
    """The host of a canonical URL, with its port where that is not the default."""
    return url.split("/", 3)[2].lower().rpartition("@")[2] if "://" in url else ""


class Scope:
    """Which URLs a crawl may visit: by host, pattern and file type."""

    def __init__(self, hosts: Iterable[str], allow: Iterable[str], deny: Iterable[str]) -> None:
        self.hosts = frozenset(host.lower() for host in hosts)
        self._allow = [re.compile(pattern) for pattern in allow]
        self._deny = [re.compile(pattern) for pattern in deny]

    def refusal(self, url: str) -> str | None:
        """Why a canonical URL is not visited; None if it may be."""
        if host_of(url) not in self.hosts:
            return f"its host {host_of(url)} is none of {', '.join(sorted(self.hosts))}"
        if len(url) > MAX_LENGTH:
            return f"it is longer than {MAX_LENGTH:,} characters"
        if found := _BINARY.search(urlsplit(url).path):
            return f"{found.group()} is no type of text"
        for pattern in self._deny:
            if pattern.search(url):
                return f"deny: {pattern.pattern!r} matches"
        if self._allow and not any(pattern.search(url) for pattern in self._allow):
            return "none of the patterns in allow matches"
        return None

    def admits(self, url: str) -> bool:
        """Whether a canonical URL may be fetched."""
        return self.refusal(url) is None

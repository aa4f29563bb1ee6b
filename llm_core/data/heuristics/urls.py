"""URL lists: domains, addresses and words that a page's URL must not have (Penedo et al. 2023, RefinedWeb).

The registered domain is found with the public suffix list inside tldextract; nothing is fetched.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from urllib.parse import urlsplit

from tldextract import TLDExtract

from llm_core.data.heuristics.lists import Version, entries, version

_OTHER = re.compile(r"[^a-zA-Z0-9]+")


@dataclass(frozen=True, slots=True)
class UrlLists:
    """Files that hold the lists; two banned words are one too many where each alone may be harmless."""

    domains: tuple[Path, ...] = ()
    urls: tuple[Path, ...] = ()
    banned_words: tuple[Path, ...] = ()
    soft_banned_words: tuple[Path, ...] = ()
    banned_subwords: tuple[Path, ...] = ()
    soft_words: int = 2


def listed_url(url: str | None, lists: UrlLists) -> str | None:
    """Why a URL is not wanted, None if it is, or if there is none."""
    if not url or not (files := _files(lists)):
        return None
    return _Lists.of(lists, tuple(map(version, files))).reason(url)


def _files(lists: UrlLists) -> tuple[Path, ...]:
    return lists.domains + lists.urls + lists.banned_words + lists.soft_banned_words + lists.banned_subwords


class _Lists:
    """The lists of some files, read once a process."""

    def __init__(self, lists: UrlLists) -> None:
        def read(files: tuple[Path, ...]) -> frozenset[str]:
            return frozenset(entry for file in files for entry in entries(file))

        def plain(files: tuple[Path, ...]) -> frozenset[str]:
            return frozenset(_OTHER.sub("", entry).lower() for entry in read(files)) - {""}

        self._domains = frozenset(entry.lower() for entry in read(lists.domains))
        self._urls = read(lists.urls)
        self._words, self._soft_words = plain(lists.banned_words), plain(lists.soft_banned_words)
        subwords = plain(lists.banned_subwords)
        self._subwords = re.compile("|".join(map(re.escape, sorted(subwords)))) if subwords else None
        self._most = lists.soft_words
        self._extract = TLDExtract(suffix_list_urls=(), cache_dir=None)

    @staticmethod
    @lru_cache(64)
    def of(lists: UrlLists, _: tuple[Version, ...]) -> _Lists:
        return _Lists(lists)

    def reason(self, url: str) -> str | None:
        if self._domains and (reason := self._domain(url)):
            return reason
        if url in self._urls:
            return "url_listed"
        words = {word.lower() for word in _OTHER.split(url)}
        if words & self._words:
            return "url_banned_word"
        if len(words & self._soft_words) >= self._most:
            return "url_soft_banned_words"
        if self._subwords and self._subwords.search(_OTHER.sub("", url).lower()):
            return "url_banned_subword"
        return None

    def _domain(self, url: str) -> str | None:
        try:
            host = urlsplit(url).hostname or ""
        except ValueError:
            return None
        registered = self._extract.extract_str(host).top_domain_under_public_suffix or host
        if registered in self._domains:
            return "url_domain"
        labels = host.split(".")
        below = range(max(0, len(labels) - len(registered.split("."))))
        return "url_subdomain" if any(".".join(labels[place:]) in self._domains for place in below) else None

"""The forget list: what must never be learned again, one entry a line.

    url https://example.org/page         the page, wherever a source has it
    domain example.org                   every page of the host, and of hosts below it
    document 0c5d...  13:9f3c... ...     the text of this id wherever it turns up; then passages that only it had
    digest 77ab...                       the raw page or row of this digest

Ids and digests are hashes, so the list does not tell the text that it makes forgotten. A passage is a number of words
and the hash of so many words of the text: with it can be shown later that no shard holds the text, when the text itself
is nowhere any longer. Short excerpts, as scores have them, are known by two more marks: `^6:77ab...` is a passage with
which the text begins, `=5d0c...` the hash of one of its parts (a question, an answer).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from urllib.parse import urlsplit

from llm_core.contract import BadInput
from llm_core.data.web.urls import canonical

_HASH = re.compile(r"[0-9a-f]{32}")
_PASSAGE = re.compile(r"(\^?)([1-9]\d{0,2}):([0-9a-f]{16})")
_PART = re.compile(r"=([0-9a-f]{32})")
_DOMAIN = re.compile(r"[^\s/:@]+")
Passage = tuple[int, int]
"""(words, hash of so many words)."""


@dataclass(frozen=True, slots=True)
class Marks:
    """By what a document is known again, though its text is gone; each mark is of it alone."""

    passages: tuple[Passage, ...] = ()
    openings: tuple[Passage, ...] = ()
    parts: tuple[str, ...] = ()

    def words(self) -> list[str]:
        """The marks as they stand in the list."""
        told = [f"{words}:{code:016x}" for words, code in sorted(self.passages)]
        told += [f"^{words}:{code:016x}" for words, code in sorted(self.openings)]
        return [*told, *(f"={part}" for part in sorted(self.parts))]


@dataclass(frozen=True, slots=True)
class Forgotten:
    """A forget list as it was read. It is false when it holds nothing."""

    urls: frozenset[str] = frozenset()
    domains: frozenset[str] = frozenset()
    documents: frozenset[str] = frozenset()
    digests: frozenset[str] = frozenset()
    passages: frozenset[Passage] = field(default=frozenset(), repr=False)
    openings: frozenset[Passage] = field(default=frozenset(), repr=False)
    parts: frozenset[str] = field(default=frozenset(), repr=False)

    def __bool__(self) -> bool:
        return bool(self.urls or self.domains or self.documents or self.digests)

    def names(self, url: str | None) -> bool:
        """Whether this address is to be forgotten: the URL itself, or its host or one above that."""
        if not url or not (self.urls or self.domains):
            return False
        if url in self.urls or address(url) in self.urls:
            return True
        host = _host(url) if self.domains else ""
        while host:
            if host in self.domains:
                return True
            host = host.partition(".")[2]
        return False

    def holds(self, url: str | None, digest: str | None, key: str | None = None) -> bool:
        """Whether a page, row or document of this address, raw digest or id is to be forgotten."""
        return digest in self.digests or key in self.documents or self.names(url)


NOTHING = Forgotten()


def read(path: Path | None) -> Forgotten:
    """The list in a file; empty without one. Raises `BadInput` naming the line that cannot be read."""
    if path is None or not path.is_file():
        return NOTHING
    state = path.stat()
    return _read(path, state.st_mtime_ns, state.st_size)


@lru_cache(2)
def _read(path: Path, changed: int, size: int) -> Forgotten:  # noqa: ARG001  (they tell one list from the next)
    found: dict[str, set[str]] = {kind: set() for kind in ("url", "domain", "document", "digest")}
    marks: list[Marks] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        try:
            kind, value = entry(words[0], words[1] if len(words) > 1 else "")
            if len(words) > 2 and kind != "document":
                raise BadInput(f"nothing may stand behind a {kind}")
            marks.append(_marks(words[2:]))
        except BadInput as error:
            raise BadInput(f"{path.name}: line {number}: {error}") from None
        found[kind].add(value)
    return Forgotten(
        urls=frozenset(found["url"]),
        domains=frozenset(found["domain"]),
        documents=frozenset(found["document"]),
        digests=frozenset(found["digest"]),
        passages=frozenset(passage for mark in marks for passage in mark.passages),
        openings=frozenset(passage for mark in marks for passage in mark.openings),
        parts=frozenset(part for mark in marks for part in mark.parts),
    )


def entry(kind: str, value: str) -> tuple[str, str]:
    """An entry in its one spelling. Raises `BadInput`."""
    if kind == "url" and value:
        return kind, address(value)
    if kind == "domain" and _DOMAIN.fullmatch(value):
        return kind, _ascii(value.lower().strip("."))
    if kind in ("document", "digest") and _HASH.fullmatch(value):
        return kind, value
    known = "url URL, domain HOST, document ID or digest HASH (32 hexadecimal digits)"
    raise BadInput(f"{f'{kind} {value}'.strip()!r} is none of: {known}")


def kind_of(target: str) -> str:
    """What a person means: url, domain or document (an id, or the digest of a raw row). Raises `BadInput`."""
    if _HASH.fullmatch(target):
        return "document"
    if "/" in target:
        return "url"
    if "." in target and _DOMAIN.fullmatch(target):
        return "domain"
    raise BadInput(f"forget: {target!r} is no URL, no host name and no document's id (32 hexadecimal digits)")


def address(url: str) -> str:
    """A URL as the crawl spells it; what is none, such as a file's path, stays as it is."""
    try:
        return canonical(url) or url
    except ValueError:
        return url


def line_of(kind: str, value: str, marks: Marks = Marks()) -> str:
    """An entry as it stands in the list."""
    return " ".join([kind, value, *marks.words()])


def _marks(words: Iterable[str]) -> Marks:
    passages: list[Passage] = []
    openings: list[Passage] = []
    parts: list[str] = []
    for word in words:
        if part := _PART.fullmatch(word):
            parts.append(part[1])
        elif match := _PASSAGE.fullmatch(word):
            (openings if match[1] else passages).append((int(match[2]), int(match[3], 16)))
        else:
            raise BadInput(f"{word!r} is no passage (WORDS:HASH, ^WORDS:HASH) and no part (=HASH)")
    return Marks(tuple(passages), tuple(openings), tuple(parts))


def _host(url: str) -> str:
    try:
        return _ascii((urlsplit(url).hostname or "").lower().rstrip("."))
    except ValueError:
        return ""


def _ascii(host: str) -> str:
    try:
        return host.encode("idna").decode() if not host.isascii() else host
    except UnicodeError:
        return host

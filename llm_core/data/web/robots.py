"""robots.txt as RFC 9309 reads it, with the line that decided: a verdict without its rule convinces nobody.

Groups, product tokens, wildcards and the longest match follow the RFC and Google's published reference parser, so that
its expectations can be asked of this file. Where RFC and reference differ (percent-encoded ASCII, which the RFC wants
decoded before comparison), the stricter reading counts: a Disallow holds in either spelling, an Allow only as written.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

LIMIT = 500 * 1024
"""Bytes of a robots.txt that are read (RFC 9309, 2.5: at least 500 KiB)."""
MAX_LINE = 2083 * 8
_KEYS = {
    **dict.fromkeys(("user-agent", "useragent", "user agent"), "user-agent"),
    **dict.fromkeys(("disallow", "dissallow", "dissalow", "disalow", "diasllow", "disallaw"), "disallow"),
    **dict.fromkeys(("sitemap", "site-map"), "sitemap"),
    "allow": "allow",
    "crawl-delay": "crawl-delay",
}
_LINES = re.compile(r"\r\n|\r|\n")
_PRODUCT = re.compile(r"[A-Za-z_-]*")
_ESCAPE = re.compile(r"%[0-9a-fA-F]{2}")
_PATH = re.compile(r"^(?:[A-Za-z][A-Za-z0-9+.-]*:)?//[^/?;#]*")


class Verdict(NamedTuple):
    """Whether a URL may be fetched, and the rule that decided, such as "line 3: Disallow: /private"."""

    allowed: bool
    rule: str


@dataclass(frozen=True, slots=True)
class Rule:
    """One Allow or Disallow line. Its weight is the length of its pattern; 0 binds nobody."""

    allow: bool
    pattern: str
    line: int
    text: str

    def matches(self, path: str) -> bool:
        """Whether the pattern matches the path: `*` stands for anything, a final `$` for the end."""
        return _matches(self.pattern, path)

    def matches_decoded(self, path: str) -> bool:
        """The same with the escapes of pattern and path undone; `path` comes decoded."""
        return _matches(_decoded(self.pattern), path)


def _matches(pattern: str, path: str) -> bool:
    anchored = pattern.endswith("$")
    first, *rest = (pattern[:-1] if anchored else pattern).split("*")
    if not path.startswith(first):
        return False
    if not rest:
        return not anchored or len(path) == len(first)
    at = len(first)
    for part in rest[:-1]:
        found = path.find(part, at)
        if found < 0:
            return False
        at = found + len(part)
    if anchored:
        return len(path) - len(rest[-1]) >= at and path.endswith(rest[-1])
    return path.find(rest[-1], at) >= 0


class Robots:
    """The rules of one robots.txt for one crawler, named by its product token (case does not matter).

    `delay` is the group's Crawl-delay in seconds, or None; `sitemaps` are the addresses of its Sitemap lines.
    """

    def __init__(self, text: str, agent: str) -> None:
        self.delay: float | None = None
        self.sitemaps: list[str] = []
        self._always: Verdict | None = None
        specific: list[Rule] = []
        general: list[Rule] = []
        delays: dict[bool, float] = {}
        named = False
        ours = everyone = closed = False
        for number, key, value in _directives(text):
            if key == "user-agent":
                if closed:
                    ours = everyone = closed = False
                everyone |= value == "*" or (value[:1] == "*" and value[1:2].isspace())
                if agent and value[:1] != "*" and _product(value) == agent.lower():
                    ours = named = True
            elif key == "sitemap":
                self.sitemaps.append(value)
            elif key == "crawl-delay":
                if (seconds := _seconds(value)) is not None and (ours or everyone):
                    delays.setdefault(ours, seconds)
            elif ours or everyone:
                closed = True
                (specific if ours else general).extend(_rules(key == "allow", value, number))
        # A group that names the crawler replaces the general one, also when it holds no rule at all.
        self.rules = specific if named else general
        self.delay = delays.get(named)

    @classmethod
    def from_answer(cls, status: int, body: bytes, agent: str) -> Robots:
        """What an answer to /robots.txt means: 5xx forbids everything, 4xx (and 3xx that lead nowhere) nothing."""
        if status >= 500:
            return cls.closed(f"robots.txt answers {status}", agent)
        if status >= 300:
            robots = cls("", agent)
            robots._always = Verdict(True, f"robots.txt answers {status}: no rules")
            return robots
        return cls(body[:LIMIT].decode("utf-8-sig", "replace"), agent)

    @classmethod
    def closed(cls, why: str, agent: str = "") -> Robots:
        """Nothing is allowed, because robots.txt could not be had."""
        robots = cls("", agent)
        robots._always = Verdict(False, why)
        return robots

    def verdict(self, url: str) -> Verdict:
        """Whether a URL may be fetched: the longest pattern that matches decides, Allow where two are equally long."""
        if self._always is not None:
            return self._always
        path = path_of(url)
        if path == "/robots.txt":
            return Verdict(True, "robots.txt itself may always be fetched")
        plain = _decoded(path)
        best: Rule | None = None
        for rule in self.rules:
            longer = best is None or (len(rule.pattern), rule.allow) > (len(best.pattern), best.allow)
            if rule.pattern and longer and (rule.matches(path) or (not rule.allow and rule.matches_decoded(plain))):
                best = rule
        if best is None:
            return Verdict(True, "no rule matches")
        return Verdict(best.allow, f"line {best.line}: {best.text}")


def path_of(url: str) -> str:
    """What rules are matched against: path, parameters and query, without the fragment."""
    path = _PATH.sub("", url, count=1).partition("#")[0]
    return path if path.startswith("/") else "/" + path


def _directives(text: str) -> Iterator[tuple[int, str, str]]:
    """(line number, key, value) of each line that can be read; a missing colon between two words is forgiven."""
    for number, raw in enumerate(_LINES.split(text.removeprefix("\ufeff")), 1):
        line = raw[:MAX_LINE].partition("#")[0].strip()
        if not line:
            continue
        key, colon, value = line.partition(":")
        if not colon:
            words = line.split()
            if len(words) != 2:
                continue
            key, value = words
        known = _KEYS.get(key.strip().lower())
        if known:
            yield number, known, value.strip()


def _product(value: str) -> str:
    found = _PRODUCT.match(value)
    return found.group().lower() if found else ""


def _seconds(value: str) -> float | None:
    try:
        seconds = float(value)
    except ValueError:
        return None
    return seconds if math.isfinite(seconds) and seconds >= 0 else None


def _rules(allow: bool, value: str, line: int) -> Iterator[Rule]:
    pattern = "".join(c if c.isascii() else "".join(f"%{byte:02X}" for byte in c.encode()) for c in value)
    pattern = _ESCAPE.sub(lambda found: found.group().upper(), pattern)
    text = f"{'Allow' if allow else 'Disallow'}: {value[:200]}"
    yield Rule(allow, pattern, line, text)
    folder, slash, page = pattern.rpartition("/")
    if allow and slash and page.startswith("index.htm"):  # whoever allows the index page means its folder, too
        yield Rule(allow, folder + "/$", line, text)


def _decoded(text: str) -> str:
    """A path or pattern with its escapes undone, those of the characters that mean something here left alone."""
    return _ESCAPE.sub(_plain, text) if "%" in text else text


def _plain(found: re.Match[str]) -> str:
    character = chr(int(found.group()[1:], 16))
    return found.group().upper() if character in "/%*$?#" else character

"""C4's rules (Raffel et al. 2020), as its reference implementation and datatrove 0.10 apply them.

Lines are judged one by one; what is left must have five sentences. Sentences are counted as spaCy's rule-based
sentencizer counts them in one line: a full stop, question or exclamation mark that stands as a token of its own ends a
sentence once another word follows.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from heapq import nlargest
from pathlib import Path

from llm_core.data.heuristics.lists import Version, entries, version
from llm_core.data.heuristics.words import TERMINAL

_CITATION = re.compile(r"\[\d*\]|\[edit\]|\[citation needed\]")
_POLICY = re.compile("terms of use|privacy policy|cookie policy|uses cookies|use of cookies|use cookies")
_LINE_END = (".", "?", "!", '"', "'")
_RUN = re.compile(r"\w+")
_WITHOUT_SPACES = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff]")
_CLOSING = "\"'”’»)]}›*_"
_OPENING = "\"'“‘«([{‹*_"
_INSIDE = re.compile(r"(?<=[a-z])\.(?=[A-Z])")
_WITH_FULL_STOP = """a.m. p.m. e.g. i.e. d.c. ph.d. v.s. vs. co. corp. inc. ltd. bros. adm. dr. gen. gov. jr. messrs.
mr. mrs. ms. prof. rep. rev. sen. st. mt. md. mo. mont. jan. feb. mar. apr. jun. jul. aug. sep. sept. oct. nov. dec. ak.
ala. ariz. ark. calif. colo. conn. del. fla. ga. ia. id. ill. ind. kan. kans. ky. la. mass. mich. minn. miss. n.c. n.d.
n.h. n.j. n.m. n.y. neb. nebr. nev. okla. ore. pa. s.c. tenn. va. wash. wis."""
_ABBREVIATIONS = frozenset(_WITH_FULL_STOP.split())
"""English words whose full stop belongs to them."""


@dataclass(frozen=True, slots=True)
class C4Limits:
    """Thresholds and switches of the line and document rules."""

    terminal_punctuation: bool = True
    """Keep only lines that end a sentence; FineWeb leaves this rule out."""
    min_sentences: int = 5
    min_words_per_line: int = 3
    max_word_length: int = 1_000
    citations: bool = True
    lorem_ipsum: bool = True
    javascript: bool = True
    curly_bracket: bool = True
    policy: bool = True
    min_paragraphs: int = 3
    min_paragraph_length: int = 200


def c4_quality(text: str, mode: str = "default", limits: C4Limits = C4Limits()) -> str | None:  # noqa: ARG001
    """The first document rule that fails after the line rules have removed lines; the same in both modes."""
    return c4_lines(text, limits)[0]


def c4_lines(text: str, limits: C4Limits = C4Limits()) -> tuple[str | None, str]:
    """(reason or None, the lines that C4 keeps)."""
    whole = text.lower()
    lorem = limits.lorem_ipsum and "lorem ipsum" in whole
    dubious = lorem or (limits.javascript and "javascript" in whole) or (limits.policy and _POLICY.search(whole))
    kept, sentences = [], 0
    for raw in text.splitlines():
        line = raw.strip()
        words = line.split()
        if len(line) > limits.max_word_length and any(len(word) > limits.max_word_length for word in words):
            continue
        if limits.citations and "[" in line:
            line = _CITATION.sub("", line)
        if limits.terminal_punctuation and (not line.endswith(_LINE_END) or line.endswith("...")):
            continue
        if len(words) < limits.min_words_per_line:
            continue
        lower = line.lower() if dubious else ""
        if lorem and "lorem ipsum" in lower:
            return "lorem_ipsum", text
        if limits.javascript and "javascript" in lower:
            continue
        if limits.curly_bracket and "{" in line:
            return "curly_bracket", text
        if limits.policy and _POLICY.search(lower):
            continue
        if sentences < limits.min_sentences:
            sentences += count_sentences(line)
        kept.append(line)
    if sentences < limits.min_sentences:
        return "too_few_sentences", text
    return None, "\n".join(kept).strip()


def count_sentences(line: str) -> int:
    """Sentences of one line."""
    count, ended = 0, True
    for chunk in line.split():
        speaks = any(map(str.isalnum, chunk))
        if ended and speaks:
            count, ended = count + 1, False
        if speaks:
            count += len(_INSIDE.findall(chunk)) if "." in chunk[:-1] and "/" not in chunk and "@" not in chunk else 0
        ended = ended or _ends(chunk)
    return max(count, 1)


def _ends(chunk: str) -> bool:
    """Whether a sentence ends with these characters, by the rules that split off a full stop from a word."""
    core = chunk.rstrip(_CLOSING)
    if not core or core[-1] not in TERMINAL:
        return False
    if core[-1] != "." or len(core) == 1:
        return True
    before = core.lstrip(_OPENING)[:-1]
    if not before:
        return True
    if before[-1] == ".":
        return False
    if f"{before.lower()}." in _ABBREVIATIONS or (len(before) == 1 and before.isalpha()):
        return False
    return not before[-1].isupper() or (before[-2:].isupper() and before[-2].isalpha())


def c4_paragraphs(text: str, limits: C4Limits = C4Limits()) -> str | None:
    """The multilingual C4's rule: three lines of 200 characters or more."""
    lengths = nlargest(limits.min_paragraphs, map(len, text.split("\n")))
    enough = len(lengths) == limits.min_paragraphs and lengths[-1] >= limits.min_paragraph_length
    return None if enough or limits.min_paragraphs == 0 else "c4_too_few_paragraphs"


def bad_words(text: str, files: tuple[Path, ...]) -> str | None:
    """ "c4_bad_words" if the text holds an entry of a list, between characters that belong to no word.

    Entries in scripts without spaces are found anywhere.
    """
    if not files:
        return None
    lower = text.lower()
    runs = set(_RUN.findall(lower))
    found = any(_BadWords.of(path, version(path)).in_text(lower, runs) for path in files)
    return "c4_bad_words" if found else None


class _BadWords:
    """One list: entries that are a word are looked up among the text's words, the rest are searched for."""

    def __init__(self, listed: Iterable[str]) -> None:
        lower = {entry.lower() for entry in listed}
        anywhere = {entry for entry in lower if _WITHOUT_SPACES.search(entry)}
        self._words = {entry for entry in lower - anywhere if _RUN.fullmatch(entry)}
        self._phrases = [
            (frozenset(_RUN.findall(entry)), re.compile(rf"(?:\W|^){re.escape(entry)}(?:\W|$)"))
            for entry in sorted(lower - anywhere - self._words)
        ]
        self._anywhere = re.compile("|".join(map(re.escape, sorted(anywhere)))) if anywhere else None

    @staticmethod
    @lru_cache(64)
    def of(path: Path, _: Version) -> _BadWords:
        return _BadWords(entries(path))

    def in_text(self, lower: str, runs: set[str]) -> bool:
        if not self._words.isdisjoint(runs):
            return True
        if any(parts <= runs and pattern.search(lower) for parts, pattern in self._phrases):
            return True
        return bool(self._anywhere and self._anywhere.search(lower))

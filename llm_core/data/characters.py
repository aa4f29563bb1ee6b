"""Characters: mend wrong decoding, bring every letter to one form, remove what cannot be seen.

Clean text passes a few searches and is returned as it is; only what a search finds is worked on. ftfy, which is slow,
sees only text that looks as if it had been decoded wrongly.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

import ftfy

ROUNDS = 8
"""Text decoded wrongly more than once is mended again, so often at most."""
_SUSPECT = re.compile(
    "[\u00c2\u00c3\u00c5\u00d0\u00d1\u00e2\u00ef\u00f0][\u0080-\u00bf\u0152-\u017e\u02c6\u02dc\u2013-\u2122]|\ufffd"
)
"""What UTF-8 looks like when it was read as Latin-1 or Windows-1252."""
_HIDDEN = (
    "\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\u00ad\u034f\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f"
    "\ufdd0-\ufdef\ufeff\ufff9-\ufffb\ufffe\uffff\ud800-\udfff\U000e0001\U000e0020-\U000e007f"
)
"""Control characters, soft hyphens, zero-width spaces, direction marks, tag characters, noncharacters, lone
surrogates. Joiners (U+200C, U+200D) stay: Persian, Indic scripts and emoji need them."""
_ODD_SPACES = "\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000"
_REMOVED, _SPACES = re.compile(f"[{_HIDDEN}]"), re.compile(f"[{_ODD_SPACES}]")
_LINE_ENDS = re.compile("\r\n?|[\u0085\u2028\u2029]")
_PLAIN_BYTES = bytes((9, 10, *range(32, 127)))
_ODD = re.compile(f"[\r\u0085\u2028\u2029{_HIDDEN}{_ODD_SPACES}]")
_TRAILING = re.compile(r"(?<![ \t])[ \t]++(?=\n)")  # from a run's first space alone: long runs take no square of time
_BLANK_LINES = re.compile(r"\n{3,}")
_RUNS = re.compile(r"([!-/:-@\[-`{-~…–—•·¡¿。！？、])\1{3,}")
_SPACE_RUNS = re.compile(" {2,}")
_SPECIAL = re.compile(r"<\|(?=[A-Za-z0-9_]{1,40}\|>)")
_FTFY = ftfy.TextFixerConfig(
    unescape_html=False, uncurl_quotes=False, fix_latin_ligatures=False, fix_character_width=False, normalization=None
)


@dataclass(frozen=True, slots=True)
class CharacterOptions:
    """`punctuation`: keep, squeeze (at most three of a mark in a row) or remove; `case`: keep or lower."""

    punctuation: str = "squeeze"
    case: str = "keep"


def repair(text: str, options: CharacterOptions = CharacterOptions()) -> str:
    """Mended text in NFC, with plain spaces and line ends, at most one blank line in a row, outer space removed.

    What is mended needs no mending: `repair(repair(text)) == repair(text)`, with any options.
    """
    for _ in range(ROUNDS):
        before, rare = text, _rare(text)
        suspect = _SUSPECT.search(rare) is not None and _SUSPECT.search(text) is not None
        if suspect:
            text = ftfy.fix_text(text, _FTFY)
            rare = _rare(text)
        mended = _wanted(_plain(text, odd=_ODD.search(rare) is not None), options)
        if not suspect and not _SUSPECT.search(_rare(mended)):
            return mended
        if mended == before:
            break
        text = mended
    return text


def _rare(text: str) -> str:
    """What is left of a text without tabs, line feeds and printable ASCII: little, and quickly searched."""
    data = text.encode("utf-8", "surrogatepass").translate(None, _PLAIN_BYTES)
    return data.decode("utf-8", "surrogatepass")


def _plain(text: str, *, odd: bool) -> str:
    if odd:
        text = _SPACES.sub(" ", _REMOVED.sub("", _LINE_ENDS.sub("\n", text)))
    if not unicodedata.is_normalized("NFC", text):
        text = unicodedata.normalize("NFC", text)
    return text


def _wanted(text: str, options: CharacterOptions) -> str:
    if options.case == "lower":
        text = unicodedata.normalize("NFC", text.lower())
    if options.punctuation == "squeeze" and _RUNS.search(text):
        text = _RUNS.sub(r"\1\1\1", text)
    elif options.punctuation == "remove":
        text = _SPACE_RUNS.sub(" ", text.translate(_NO_PUNCTUATION))
    if " \n" in text or "\t\n" in text:
        text = _TRAILING.sub("", text)
    if "\n\n\n" in text:
        text = _BLANK_LINES.sub("\n\n", text)
    return text.strip()


class _NoPunctuation(dict[int, str]):
    """A table for str.translate that fills itself: punctuation and symbols become spaces, all else stays."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        self[code] = " " if unicodedata.category(character)[0] in "PS" else character
        return self[code]


_NO_PUNCTUATION = _NoPunctuation()


def part_special_tokens(text: str) -> tuple[str, int]:
    """(text in which what spells a special token, such as <|end|>, is parted by a space; how often that was).

    The project's own tokenizer reads such text as plain characters anyway; other programs that load the tokenizer's
    files may not.
    """
    return _SPECIAL.subn("<| ", text) if "<|" in text else (text, 0)

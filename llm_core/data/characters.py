"""Characters: mend wrong decoding, bring every letter to one form, remove what cannot be seen."""

from __future__ import annotations

import re
import unicodedata

import ftfy

_SUSPECT = re.compile(
    "[\u00c2\u00c3\u00c5\u00d0\u00d1\u00e2\u00ef\u00f0][\u0080-\u00bf\u0152-\u017e\u02c6\u02dc\u2013-\u2122]|\ufffd"
)
"""What UTF-8 looks like when it was read as Latin-1 or Windows-1252."""
_REMOVED = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufeff"
    "\ufff9-\ufffb\ud800-\udfff]"
)
"""Control characters, soft hyphens, zero-width spaces, direction marks, lone surrogates; joiners stay."""
_SPACES = re.compile("[\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]")
_LINE_ENDS = re.compile("\r\n?|[\u0085\u2028\u2029]")
_TRAILING = re.compile(r"[ \t]+(?=\n)")
_BLANK_LINES = re.compile(r"\n{3,}")
_FTFY = ftfy.TextFixerConfig(
    unescape_html=False, uncurl_quotes=False, fix_latin_ligatures=False, fix_character_width=False, normalization=None
)


def repair(text: str) -> str:
    """Mended text in NFC, with plain spaces and line ends, at most one blank line in a row, outer space removed.

    What is mended needs no mending: `repair(repair(text)) == repair(text)`.
    """
    while True:
        suspect = _SUSPECT.search(text) is not None
        mended = _plain(ftfy.fix_text(text, _FTFY) if suspect else text)
        if mended == text or not (suspect or _SUSPECT.search(mended)):
            return mended
        text = mended


def _plain(text: str) -> str:
    text = _REMOVED.sub("", _LINE_ENDS.sub("\n", text))
    if not text.isascii():
        text = _SPACES.sub(" ", text)
        if not unicodedata.is_normalized("NFC", text):
            text = unicodedata.normalize("NFC", text)
    return _BLANK_LINES.sub("\n\n", _TRAILING.sub("", text)).strip()

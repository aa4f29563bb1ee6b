"""Duplicates: the same text twice, and paragraphs that an earlier document already had."""

from __future__ import annotations

import re

import xxhash

SHORTEST_REPEAT = 100
"""Characters: shorter paragraphs, such as signatures, are alike because language is."""
_PARAGRAPHS = re.compile(r"\n{2,}")


class Seen:
    """Ids that came before. 16 bytes each and the set's own room."""

    def __init__(self) -> None:
        self._ids: set[bytes] = set()

    def add(self, identity: str) -> bool:
        """Remember a hex id; False if it was known."""
        key = bytes.fromhex(identity)
        if key in self._ids:
            return False
        self._ids.add(key)
        return True


class Paragraphs:
    """Removes paragraphs that came before, in this document or an earlier one of the same source."""

    def __init__(self) -> None:
        self._hashes: set[int] = set()
        self.removed = 0

    def fresh(self, text: str) -> str:
        """The text without paragraphs of 100 characters or more that are known already, white space aside."""
        kept = []
        for paragraph in _PARAGRAPHS.split(text):
            squeezed = " ".join(paragraph.split())
            if len(squeezed) >= SHORTEST_REPEAT:
                key = xxhash.xxh3_64_intdigest(squeezed.encode("utf-8", "surrogatepass"))
                if key in self._hashes:
                    self.removed += 1
                    continue
                self._hashes.add(key)
            kept.append(paragraph)
        return "\n\n".join(kept)

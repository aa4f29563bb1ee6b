"""Tokens become text as they come: whole characters only, nothing of a stop text, each token's log-probability."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

LOWEST = -9999.0
"""Stands for minus infinity, which JSON has not."""


class Scored(NamedTuple):
    """A token of an answer: where its text begins in the answer, and how likely it was."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]
    offset: int


@dataclass(slots=True)
class Delta:
    """What can be told now. `finish`: "" goes on, else why the answer ended: stop or length."""

    text: str = ""
    scored: list[Scored] = field(default_factory=list)
    finish: str = ""

    def add(self, later: Delta) -> None:
        """Let what came later be told with this."""
        self.text += later.text
        self.scored += later.scored
        self.finish = later.finish


class Transcript:
    """One answer. `pieces`: the bytes of each token id; `ends`: ids whose token ends an answer and is not shown."""

    def __init__(self, pieces: Sequence[bytes], stops: Sequence[str], ends: frozenset[int]) -> None:
        self._pieces, self._stops, self._ends = pieces, stops, ends
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._text = ""
        self._told = 0
        self._waiting: list[Scored] = []
        self.tokens = 0
        self.finish = ""

    def take(self, token: int, logprob: float, top: tuple[tuple[int, float], ...], finished: str) -> Delta:
        """Add a token; `finished` as the sampler says. After the end nothing may be added."""
        self.tokens += 1
        if token not in self._ends:
            self._waiting.append(Scored(token, max(logprob, LOWEST), top, len(self._text)))
            searched = len(self._text)
            self._text += self._decoder.decode(self._pieces[token])
            if self._cut(searched):
                return self._tell("stop")
        return self.end(finished) if finished else self._tell("")

    def end(self, why: str) -> Delta:
        """The answer is over; bytes that are no whole character become U+FFFD."""
        searched = len(self._text)
        self._text += self._decoder.decode(b"", final=True)
        return self._tell("stop" if self._cut(searched) else why)

    def _cut(self, searched: int) -> bool:
        """Cut the text before the earliest stop text; what lies before `searched` was looked through already."""
        found = [self._text.find(stop, max(0, searched - len(stop) + 1)) for stop in self._stops]
        places = [place for place in found if place >= 0]
        if places:
            self._text = self._text[: min(places)]
            self._waiting = [scored for scored in self._waiting if scored.offset < len(self._text)]
        return bool(places)

    def _tell(self, finish: str) -> Delta:
        """The text up to where a stop text may have begun, and the tokens that begin before that."""
        self.finish = finish
        until = len(self._text) if finish else len(self._text) - self._held()
        ready = [scored for scored in self._waiting if finish or scored.offset < until]
        self._waiting = self._waiting[len(ready) :]
        text, self._told = self._text[self._told : until], until
        return Delta(text, ready, finish)

    def _held(self) -> int:
        """Characters at the end that may be the beginning of a stop text."""
        longest = 0
        for stop in self._stops:
            for size in range(min(len(stop) - 1, len(self._text)), longest, -1):
                if self._text.endswith(stop[:size]):
                    longest = size
                    break
        return longest

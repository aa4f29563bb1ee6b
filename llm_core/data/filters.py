"""Quality filters: Gopher, C4 and FineWeb, re-stated on one shared word split.

Each function returns None for a document that passes, else the name of the first rule that fails, by datatrove's
names. Sources: Rae et al. 2021 (Gopher), Raffel et al. 2020 (C4), Penedo et al. 2024 (FineWeb); thresholds as in
datatrove 0.10. `mode` "datatrove" gives datatrove's decisions, where punctuation marks count as words; "default"
takes Gopher's share of alphabetic words over words alone, as the paper means it: else one real news article in
seven falls.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from llm_core.data.heuristics.c4 import C4Limits, bad_words, c4_lines, c4_paragraphs, c4_quality
from llm_core.data.heuristics.fineweb import FineWebLimits, fineweb_quality
from llm_core.data.heuristics.gopher import QualityLimits, gopher_quality
from llm_core.data.heuristics.repetition import RepetitionLimits, gopher_repetition
from llm_core.data.heuristics.urls import UrlLists, listed_url

__all__ = [
    "C4Limits",
    "FilterOptions",
    "FineWebLimits",
    "QualityLimits",
    "RepetitionLimits",
    "UrlLists",
    "bad_words",
    "c4_lines",
    "c4_paragraphs",
    "c4_quality",
    "fineweb_quality",
    "gopher_quality",
    "gopher_repetition",
    "judge",
    "listed_url",
    "too_short",
]


@dataclass(frozen=True, slots=True)
class FilterOptions:
    """Which filters a document must pass, and their thresholds; `min_words` counts words separated by white space."""

    min_words: int = 0
    gopher_quality: bool = True
    gopher_repetition: bool = True
    c4_quality: bool = False
    c4_paragraphs: bool = False
    fineweb_quality: bool = False
    mode: str = "default"
    quality: QualityLimits = field(default_factory=QualityLimits)
    repetition: RepetitionLimits = field(default_factory=RepetitionLimits)
    c4: C4Limits = field(default_factory=C4Limits)
    fineweb: FineWebLimits = field(default_factory=FineWebLimits)
    bad_words: tuple[Path, ...] = ()
    urls: UrlLists = field(default_factory=UrlLists)


def judge(text: str, options: FilterOptions) -> tuple[str | None, str]:
    """(reason or None, text) after all filters of the text that are on; C4's removes lines from it."""
    if reason := too_short(text, options.min_words):
        return reason, text
    if options.gopher_repetition and (reason := gopher_repetition(text, options.mode, options.repetition)):
        return reason, text
    if options.gopher_quality and (reason := gopher_quality(text, options.mode, options.quality)):
        return reason, text
    if options.c4_quality:
        reason, text = c4_lines(text, options.c4)
        if reason:
            return reason, text
    if options.c4_paragraphs and (reason := c4_paragraphs(text, options.c4)):
        return reason, text
    if options.fineweb_quality and (reason := fineweb_quality(text, options.mode, options.fineweb)):
        return reason, text
    return bad_words(text, options.bad_words), text


def too_short(text: str, min_words: int) -> str | None:
    """ "too_few_words" if the text has fewer words than `min_words`."""
    return "too_few_words" if len(text.split(None, min_words)) < min_words else None

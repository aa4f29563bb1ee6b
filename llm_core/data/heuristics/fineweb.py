"""FineWeb's own rules (Penedo et al. 2024) on the ends, lengths and repetition of lines."""

from __future__ import annotations

from dataclasses import dataclass

from llm_core.data.heuristics.repetition import repeated
from llm_core.data.heuristics.words import TERMINAL, arrays, words


@dataclass(frozen=True, slots=True)
class FineWebLimits:
    """Thresholds."""

    min_line_punctuation: float = 0.12
    max_short_lines: float = 0.67
    short_line: int = 30
    max_repeated_characters: float = 0.01
    max_newlines: float = 0.3


def fineweb_quality(text: str, mode: str = "default", limits: FineWebLimits = FineWebLimits()) -> str | None:
    """None, or the first rule that fails; mode datatrove counts a space at a line's end as its last character."""
    lines = [line for line in text.split("\n") if line.strip()]
    if not lines:
        return "empty"
    ends = lines if mode == "datatrove" else [line.rstrip() for line in lines]
    if sum([line[-1] in TERMINAL for line in ends]) / len(lines) < limits.min_line_punctuation:
        return "line_punct_ratio"
    if sum([len(line) <= limits.short_line for line in lines]) / len(lines) > limits.max_short_lines:
        return "short_line_ratio"
    newlines = text.count("\n")
    if repeated(lines)[1] / (len(text) - newlines) > limits.max_repeated_characters:
        return "char_dup_ratio"
    if newlines <= limits.max_newlines * len(text.split()):  # there are at least as many words as the white space parts
        return None
    found = arrays(text)
    count = found.count if found else len(words(text))
    return "list_ratio" if newlines / count > limits.max_newlines else None

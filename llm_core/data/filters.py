"""Quality filters: Gopher, C4 and FineWeb, re-stated on one shared word split.

Each function returns None for a document that passes, else the name of the first rule that fails, by datatrove's
names. Sources: Rae et al. 2021 (Gopher), Raffel et al. 2020 (C4), Penedo et al. 2024 (FineWeb); thresholds as in
datatrove 0.10. `mode` "datatrove" gives datatrove's decisions, where punctuation marks count as words; "default"
takes Gopher's share of alphabetic words over words alone, as the paper means it: else one real news article in
seven falls.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

TERMINAL = frozenset(
    "!.?\u0589\u061d\u061e\u061f\u06d4\u0700\u0701\u0702\u07f9\u0837\u0839\u083d\u083e\u0964\u0965\u104a"
    "\u104b\u1362\u1367\u1368\u166e\u1735\u1736\u17d4\u17d5\u1803\u1809\u1944\u1945\u1aa8\u1aa9\u1aaa"
    "\u1aab\u1b4e\u1b4f\u1b5a\u1b5b\u1b5e\u1b5f\u1b7d\u1b7e\u1b7f\u1c3b\u1c3c\u1c7e\u1c7f\u2024\u203c"
    "\u203d\u2047\u2048\u2049\u2cf9\u2cfa\u2cfb\u2e2e\u2e3c\u2e53\u2e54\u2e60\u2e61\u3002\ua4ff\ua60e"
    "\ua60f\ua6f3\ua6f7\ua876\ua877\ua8ce\ua8cf\ua92f\ua9c8\ua9c9\uaa5d\uaa5e\uaa5f\uaaf0\uaaf1\uabeb"
    "\ufe12\ufe15\ufe16\ufe52\ufe56\ufe57\uff01\uff0e\uff1f\uff61\U00010a56\U00010a57\U00010f55\U00010f56"
    "\U00010f57\U00010f58\U00010f59\U00010f86\U00010f87\U00010f88\U00010f89\U00011047\U00011048\U000110be"
    "\U000110bf\U000110c0\U000110c1\U00011141\U00011142\U00011143\U000111c5\U000111c6\U000111cd\U000111de"
    "\U000111df\U00011238\U00011239\U0001123b\U0001123c\U000112a9\U000113d4\U000113d5\U0001144b\U0001144c"
    "\U000115c2\U000115c3\U000115c9\U000115ca\U000115cb\U000115cc\U000115cd\U000115ce\U000115cf\U000115d0"
    "\U000115d1\U000115d2\U000115d3\U000115d4\U000115d5\U000115d6\U000115d7\U00011641\U00011642\U0001173c"
    "\U0001173d\U0001173e\U00011944\U00011946\U00011a42\U00011a43\U00011a9b\U00011a9c\U00011c41\U00011c42"
    "\U00011ef7\U00011ef8\U00011f43\U00011f44\U00016a6e\U00016a6f\U00016af5\U00016b37\U00016b38\U00016b44"
    "\U00016d6e\U00016d6f\U00016e98\U0001bc9f\U0001da88"
)
"""Characters that end a sentence in some script (Unicode property Sentence_Terminal)."""
PUNCTUATION = (
    frozenset("!/—”:％１〈&(、━\\【#%「」，】；+^]~“《„';’{|∶´[=-`*．（–？！：$～«〉,><》)?）。…@_.\"}►»")
    | frozenset(chr(code) for code in (*range(9), *range(11, 32), *range(127, 160)))
    | TERMINAL
)
STOP_WORDS = frozenset({"the", "be", "to", "of", "and", "that", "have", "with"})
_WORDS = re.compile(r"\w+(?:['’]\w+)?|[^\w\s]")
_PARAGRAPHS, _LINES = re.compile(r"\n{2,}"), re.compile(r"\n+")
_CITATION = re.compile(r"\[\d*\]|\[edit\]|\[citation needed\]")
_POLICY = re.compile("terms of use|privacy policy|cookie policy|uses cookies|use of cookies|use cookies")
_SENTENCE_END = re.compile(r"[.!?。！？]+[\"'”’)]*(?:\s|$)")
TOP_N_GRAMS = ((2, 0.20), (3, 0.18), (4, 0.16))
DUPLICATED_N_GRAMS = ((5, 0.15), (6, 0.14), (7, 0.13), (8, 0.12), (9, 0.11), (10, 0.10))


@dataclass(frozen=True, slots=True)
class FilterOptions:
    """Which filters a document must pass; `min_words` counts words separated by white space."""

    min_words: int = 0
    gopher_quality: bool = True
    gopher_repetition: bool = True
    c4_quality: bool = False
    fineweb_quality: bool = False
    mode: str = "default"


def judge(text: str, options: FilterOptions) -> tuple[str | None, str]:
    """(reason or None, text) after all filters that are on; C4's removes lines from the text."""
    if reason := too_short(text, options.min_words):
        return reason, text
    if options.gopher_repetition and (reason := gopher_repetition(text, options.mode)):
        return reason, text
    if options.gopher_quality and (reason := gopher_quality(text, options.mode)):
        return reason, text
    if options.c4_quality:
        reason, text = c4_lines(text)
        if reason:
            return reason, text
    if options.fineweb_quality and (reason := fineweb_quality(text, options.mode)):
        return reason, text
    return None, text


def too_short(text: str, min_words: int) -> str | None:
    """ "too_few_words" if the text has fewer words than `min_words`."""
    return "too_few_words" if len(text.split(None, min_words)) < min_words else None


@lru_cache(maxsize=4)
def words(text: str) -> tuple[str, ...]:
    """Words, and each punctuation mark as one: the split that all filters share."""
    return tuple(_WORDS.findall(text))


def gopher_quality(text: str, mode: str = "default") -> str | None:
    """Gopher's quality rules on words, symbols and lines."""
    tokens = words(text)
    lengths = [len(token) for token in tokens if not PUNCTUATION.issuperset(token)]
    if len(lengths) < 50:
        return "gopher_short_doc"
    if len(lengths) > 100_000:
        return "gopher_long_doc"
    mean = sum(lengths) / len(lengths)
    if mean < 3:
        return "gopher_below_avg_threshold"
    if mean > 10:
        return "gopher_above_avg_threshold"
    return _symbols(text, len(tokens)) or _alphabet(tokens, mode)


def _symbols(text: str, count: int) -> str | None:
    if text.count("#") / count > 0.1:
        return "gopher_too_many_hashes"
    if (text.count("...") + text.count("…")) / count > 0.1:
        return "gopher_too_many_ellipsis"
    lines = text.splitlines()
    if sum(line.lstrip().startswith(("•", "-")) for line in lines) / len(lines) > 0.9:
        return "gopher_too_many_bullets"
    if sum(line.rstrip().endswith(("...", "…")) for line in lines) / len(lines) > 0.3:
        return "gopher_too_many_end_ellipsis"
    return None


def _alphabet(tokens: tuple[str, ...], mode: str) -> str | None:
    counted = tokens if mode == "datatrove" else [token for token in tokens if not PUNCTUATION.issuperset(token)]
    alphabetic = sum(token.isalpha() or any(map(str.isalpha, token)) for token in counted)
    if alphabetic / len(counted) < 0.8:
        return "gopher_below_alpha_threshold"
    return "gopher_enough_stop_words" if len(STOP_WORDS.intersection(tokens)) < 2 else None


def gopher_repetition(text: str, mode: str = "default") -> str | None:  # noqa: ARG001
    """Gopher's repetition rules on paragraphs, lines and n-grams of words; the same in both modes."""
    if not text.strip():
        return None
    paragraphs = _PARAGRAPHS.split(text.strip())
    repeats, characters = _repeated(paragraphs)
    if repeats / len(paragraphs) > 0.3:
        return "dup_para_frac"
    if characters / len(text) > 0.2:
        return "dup_para_char_frac"
    lines = _LINES.split(text)
    repeats, characters = _repeated(lines)
    if repeats / len(lines) > 0.3:
        return "dup_line_frac"
    if characters / len(text) > 0.2:
        return "dup_line_char_frac"
    tokens = words(text)
    for n, share in TOP_N_GRAMS:
        if _top_n_gram(tokens, n) / len(text) > share:
            return f"top_{n}_gram"
    for n, share in DUPLICATED_N_GRAMS:
        if _duplicated_n_grams(tokens, n) / len(text) > share:
            return f"duplicated_{n}_n_grams"
    return None


def _repeated(parts: Iterable[str]) -> tuple[int, int]:
    """How many parts came before, and their characters."""
    seen: set[str] = set()
    count = characters = 0
    for part in parts:
        if part in seen:
            count += 1
            characters += len(part)
        else:
            seen.add(part)
    return count, characters


def _top_n_gram(tokens: tuple[str, ...], n: int) -> int:
    """Characters under the most frequent n-gram; of equally frequent ones the first counts."""
    grams = Counter(zip(*(tokens[start:] for start in range(n)), strict=False))
    if not grams:
        return 0
    gram, count = grams.most_common(1)[0]
    return len(" ".join(gram)) * count


def _duplicated_n_grams(tokens: tuple[str, ...], n: int) -> int:
    """Characters in n-grams that came before, read from left to right without overlap."""
    seen: set[str] = set()
    characters = position = 0
    while position <= len(tokens) - n:
        gram = "".join(tokens[position : position + n])
        if gram in seen:
            characters += len(gram)
            position += n
        else:
            seen.add(gram)
            position += 1
    return characters


def c4_quality(text: str, mode: str = "default") -> str | None:  # noqa: ARG001
    """C4's document rules, after its line rules have removed lines; the same in both modes."""
    return c4_lines(text)[0]


def c4_lines(text: str) -> tuple[str | None, str]:
    """(reason or None, the lines that C4 keeps): whole sentences of three words or more, without boilerplate."""
    kept = []
    for line in map(str.strip, text.splitlines()):
        line = _CITATION.sub("", line)
        lower = line.lower()
        if "lorem ipsum" in lower:
            return "lorem_ipsum", text
        if "{" in line:
            return "curly_bracket", text
        parts = line.split()
        if any(len(part) > 1000 for part in parts) or len(parts) < 3:
            continue
        if not line.endswith((".", "?", "!", '"', "'")) or line.endswith("..."):
            continue
        if "javascript" in lower or _POLICY.search(lower):
            continue
        kept.append(line)
    result = "\n".join(kept)
    return ("too_few_sentences" if len(_SENTENCE_END.findall(result)) < 5 else None), result


def fineweb_quality(text: str, mode: str = "default") -> str | None:
    """FineWeb's rules on the ends, lengths and repetition of lines; datatrove counts a space at a line's end."""
    lines = [line for line in text.split("\n") if line.strip()]
    if not lines:
        return "empty"
    ends = lines if mode == "datatrove" else [line.rstrip() for line in lines]
    if sum(line[-1] in TERMINAL for line in ends) / len(lines) < 0.12:
        return "line_punct_ratio"
    if sum(len(line) <= 30 for line in lines) / len(lines) > 0.67:
        return "short_line_ratio"
    if _repeated(lines)[1] / len(text.replace("\n", "")) > 0.01:
        return "char_dup_ratio"
    return "list_ratio" if text.count("\n") / len(words(text)) > 0.3 else None

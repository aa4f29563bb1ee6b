"""article-extraction-benchmark's own score, re-stated: how much of an article's text was found, and how much else.

Texts are compared as bags of four words in a row. Of each page the true and false finds and the misses are divided by
their sum; precision and recall are means over the pages that have any, F1 is that of the two means.
"""

from __future__ import annotations

import gzip
import json
import re
import tarfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

_WORDS = re.compile(r"\w+")


def article_pages(folder: Path) -> tuple[dict[str, bytes], dict[str, str]]:
    """(pages, texts of their articles) of the benchmark's html.tar and ground-truth.json, by name."""
    texts = json.loads((folder / "ground-truth.json").read_text())
    pages: dict[str, bytes] = {}
    with tarfile.open(folder / "html.tar") as archive:
        for member in sorted(archive.getmembers(), key=lambda member: member.name):
            file = archive.extractfile(member) if member.name.endswith(".html.gz") else None
            if file is not None:
                pages[Path(member.name).name.removesuffix(".html.gz")] = gzip.decompress(file.read())
    return pages, {name: texts[name]["articleBody"] for name in pages}


def shingles(text: str, n: int = 4) -> Counter[tuple[str, ...]]:
    """The text's runs of `n` words; a shorter text is one run."""
    words = _WORDS.findall(text)
    return Counter(tuple(words[i : i + n]) for i in range(max(1, len(words) - n + 1)))


def mean_f1(found: Mapping[str, str], truth: Mapping[str, str]) -> float:
    """F1 of the mean precision and the mean recall over the pages of `truth`."""
    precisions, recalls = [], []
    for name, expected in truth.items():
        a, b = shingles(found.get(name, "")), shingles(expected)
        right, wrong, missed = (a & b).total(), (a - b).total(), (b - a).total()
        if right + wrong:
            precisions.append(right / (right + wrong))
        if right + missed:
            recalls.append(right / (right + missed))
    precision, recall = sum(precisions) / len(precisions), sum(recalls) / len(recalls)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0

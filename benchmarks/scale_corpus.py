"""The corpora that `benchmarks.scale_jobs` runs on, of any size, without copies.

Pages are real articles (shared/data/article_extraction) in which other English stands instead of every longer piece of
text, in each WARC file another, so that none is a duplicate of another; the files are in Common Crawl's layout.
"""

from __future__ import annotations

import gzip
import html
import io
import random
import re
import tarfile
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

from benchmarks.measuring import ROOT
from llm_core import artifacts
from llm_core.data.document import DIALOGUES, identity, split_of

SHARED = ROOT.parent / "shared" / "data"


@lru_cache(1)
def words() -> list[str]:
    """Words of running English."""
    return (SHARED / "wikitext2" / "train.txt").read_text().split()


def altered(text: str, rng: random.Random) -> str:
    """The text with every eighth word or so replaced."""
    known = words()
    return " ".join(rng.choice(known) if word.isalpha() and rng.random() < 0.13 else word for word in text.split(" "))


def running(count: int, rng: random.Random) -> str:
    """So many words of running English, from anywhere."""
    start = rng.randrange(max(1, len(words()) - count))
    return html.escape(" ".join(words()[start : start + count]), quote=False)


def make_warc(folder: Path, number: int, pages: int) -> None:
    """One WARC file of `pages` articles, neither the smallest nor the largest; equal numbers give equal files."""
    rng = random.Random(number)
    with tarfile.open(SHARED / "article_extraction" / "html.tar") as tar:
        members = sorted((m for m in tar.getmembers() if m.isfile()), key=lambda m: (m.size, m.name))
        first = (len(members) - pages) // 3
        packed = [tar.extractfile(m).read() for m in members[first : first + pages]]  # type: ignore[union-attr]
    with open(folder / f"CC-MAIN-{number:05d}.warc.gz", "wb") as file:
        writer = WARCWriter(file, gzip=True)
        for place, data in enumerate(packed):
            page = gzip.decompress(data).decode("utf-8", "replace")
            page = re.sub(r">([^<>]{40,})<", lambda match: f">{running(match[1].count(' ') + 1, rng)}<", page)
            http = StatusAndHeaders("200 OK", [("Content-Type", "text/html; charset=utf-8")], protocol="HTTP/1.1")
            url, date = f"https://site-{place}.example/{number}/article", {"WARC-Date": "2026-01-01T00:00:00Z"}
            payload = io.BytesIO(page.encode())
            writer.write_record(writer.create_warc_record(url, "response", payload, http_headers=http,
                                                          warc_headers_dict=date))  # fmt: skip


def texts(size: int, seed: int = 0, change: bool = True) -> Iterator[str]:
    """Documents of 300 words, `size` bytes or a little more of them in all; `change`: some words are replaced."""
    known, rng, total = words(), random.Random(seed), 0
    while total < size:
        start = rng.randrange(len(known) - 300)
        text = " ".join(known[start : start + 300])
        text = altered(text, rng) if change else text
        total += len(text.encode())
        yield text


def make_corpus(product: Path, least: int) -> None:
    """A corpus of so many bytes of text or a little more, as clean writes it."""
    schema = pa.schema([(name, pa.string()) for name in ("id", "source", "split", "text")])
    size, rows = 0, []
    facts = {"text_bytes": 0}
    with artifacts.new_product(product, "corpus", facts) as made:
        with pq.ParquetWriter(made / "documents.parquet", schema, compression="zstd") as writer:
            for text in texts(least, seed=2, change=False):
                key = identity(text)
                rows.append({"id": key, "source": "web", "split": split_of(key, 0.01), "text": text})
                size += len(text.encode())
                if len(rows) == 500:
                    writer.write_table(pa.Table.from_pylist(rows, schema=schema))
                    rows.clear()
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))
        pq.write_table(pa.Table.from_pylist([], schema=DIALOGUES), made / "dialogues.parquet")
        facts["text_bytes"] = size

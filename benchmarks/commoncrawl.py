"""Reading Common Crawl's WARC files: our reader beside a bare fastwarc loop, and the whole source beside both.

    python -m benchmarks.commoncrawl [--megabytes 250] [--rounds 5] [--data ../shared/data/warc]

The input is real captures (a Common Crawl capture and a crawl by wget) repeated until the file has the size of a small
WARC file. The bare loop reads every response's body and does nothing with it. Ours reads the same with status, type and
host filters, compares every body with its announced length, decodes encoded bodies, takes the language from the
metadata record and knows where each record ends. "whole source" also writes segments, digests and pages.parquet.
Turns alternate; CPU seconds of this process; medians.
"""

from __future__ import annotations

import argparse
import gzip
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fastwarc import ArchiveIterator, WarcRecordType

from benchmarks.measuring import ROOT, save, where
from llm_core.data.sources import common_crawl
from llm_core.data.sources.archives import Archive

PARTS = ("cc_whirlwind.warc.gz", "dolma_sample-0000.warc.gz")
MIME = ("text/html", "application/xhtml+xml")


def build(data: Path, target: Path, size: int) -> None:
    """Repeat the real captures, whole gzip members, until the file has `size` bytes."""
    block = b"".join((data / name).read_bytes() for name in PARTS)
    with open(target, "wb") as file:
        while file.tell() < size:
            file.write(block)


def bare(path: Path) -> tuple[int, int]:
    """The loop of fastwarc's own documentation: (responses, bytes of their bodies)."""
    pages = size = 0
    with open(path, "rb") as file:
        for record in ArchiveIterator(file, record_types=WarcRecordType.response):
            size += len(record.reader.read())
            pages += 1
    return pages, size


def ours(path: Path) -> tuple[int, int]:
    """The same with what a source needs: (pages, bytes of their decoded bodies)."""
    selection = common_crawl.CrawlSelection("bench", "", "", mime=MIME)
    archive = Archive(path, max_bytes=selection.max_bytes, admit=selection.admit)
    pages = size = 0
    for page in archive.pages():
        size += len(page.body)
        pages += 1
    return pages, size


def whole(path: Path, **filters: Any) -> tuple[int, int]:
    """The whole source from a folder in Common Crawl's layout: (pages, bytes of the product)."""
    with tempfile.TemporaryDirectory(dir=path.parent) as name:
        folder = Path(name)
        (folder / "paths.gz").write_bytes(gzip.compress(f"{path.name}\n".encode()))
        (folder / path.name).symlink_to(path)
        selection = common_crawl.CrawlSelection("bench", str(folder), "paths.gz", mime=MIME, **filters)
        result = common_crawl.gather(selection, folder / "store", folder / "out", "unknown", lambda *_: None)
        size = sum(file.stat().st_size for file in (folder / "out").rglob("*") if file.is_file())
        return int(result.counts["pages"]), size


def timed(call: Callable[[], tuple[int, int]]) -> tuple[float, tuple[int, int]]:
    """(CPU seconds, result) of one call."""
    began = time.process_time()
    result = call()
    return time.process_time() - began, result


def main() -> None:
    """Measure and save."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--megabytes", type=int, default=250)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data" / "warc")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "CC-MAIN-00000.warc.gz"
        build(options.data, path, options.megabytes * 1_000_000)
        calls: dict[str, Callable[[], tuple[int, int]]] = {
            "bare fastwarc loop": lambda: bare(path),
            "ours, reading": lambda: ours(path),
            "ours, whole source, all kept": lambda: whole(path),
            "ours, whole source, one host kept": lambda: whole(path, hosts=("an.wikipedia.org",)),
        }
        seconds: dict[str, list[float]] = {name: [] for name in calls}
        results: dict[str, tuple[int, int]] = {}
        for _ in range(options.rounds):
            for name, call in calls.items():
                took, results[name] = timed(call)
                seconds[name].append(took)
        size = path.stat().st_size
    base = statistics.median(seconds["bare fastwarc loop"])
    rows = {
        name: {
            "cpu_s": round(statistics.median(values), 3),
            "all_cpu_s": [round(value, 3) for value in values],
            "speed_of_the_bare_loop": round(base / statistics.median(values), 3),
            "median_of_ratios": round(
                statistics.median(b / v for b, v in zip(seconds["bare fastwarc loop"], values, strict=True)), 3
            ),
            "megabytes_per_cpu_s": round(size / 1e6 / statistics.median(values), 1),
            "pages": results[name][0],
            "bytes": results[name][1],
        }
        for name, values in seconds.items()
    }
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    facts = {"input_bytes": size, "rounds": options.rounds, "peak_mb": peak, "fastwarc": version("fastwarc")}
    print(save("commoncrawl", {"where": where(), "input": facts, "reading": rows}))
    for name, row in rows.items():
        print(f"{name:36} {row['cpu_s']:8.3f} CPU s  {row['speed_of_the_bare_loop']:6.3f}x  {row['pages']} pages")


if __name__ == "__main__":
    main()

"""Reading Common Crawl's WARC files: our reader beside a bare fastwarc loop, and the whole source beside both.

    python -m benchmarks.commoncrawl [--megabytes 250] [--rounds 5] [--data ../shared/data/warc]

Two inputs, each repeated until the file has the size of a small WARC file: the one real Common Crawl capture at hand
(request, response and metadata; a page of 73 kB), and a crawl by wget (22 pages of 33 kB on average, two of them
chunked, which Common Crawl's own files never are). The bare loop reads every response's body and does nothing with it.
Ours reads the same with status and type filters, compares every body with its announced length, decodes encoded bodies,
keeps the metadata record and knows where each record ends. "whole source" also writes segments, digests and
pages.parquet. Turns alternate; CPU seconds of this process; medians.
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

INPUTS = {"common crawl": "cc_whirlwind.warc.gz", "wget": "dolma_sample-0000.warc.gz"}
MIME = ("text/html", "application/xhtml+xml")


def build(source: Path, target: Path, size: int) -> None:
    """Repeat the real captures, whole gzip members, until the file has `size` bytes."""
    block = source.read_bytes()
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


def measured(path: Path, rounds: int) -> dict[str, Any]:
    """All readers over one file, taking turns."""
    calls: dict[str, Callable[[], tuple[int, int]]] = {
        "bare fastwarc loop": lambda: bare(path),
        "ours, reading": lambda: ours(path),
        "ours, whole source, all kept": lambda: whole(path),
        "ours, whole source, none kept": lambda: whole(path, hosts=("nowhere.invalid",)),
    }
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    results: dict[str, tuple[int, int]] = {}
    for _ in range(rounds):
        for name, call in calls.items():
            took, results[name] = timed(call)
            seconds[name].append(took)
    base = seconds["bare fastwarc loop"]
    return {
        name: {
            "cpu_s": round(statistics.median(values), 3),
            "all_cpu_s": [round(value, 3) for value in values],
            "speed_of_the_bare_loop": round(statistics.median(base) / statistics.median(values), 3),
            "median_of_ratios": round(statistics.median(b / v for b, v in zip(base, values, strict=True)), 3),
            "ratio_of_best": round(min(base) / min(values), 3),
            "megabytes_per_cpu_s": round(path.stat().st_size / 1e6 / statistics.median(values), 1),
            "pages": results[name][0],
            "bytes": results[name][1],
        }
        for name, values in seconds.items()
    }


def main() -> None:
    """Measure and save."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--megabytes", type=int, default=250)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data" / "warc")
    options = parser.parse_args()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, source in INPUTS.items():
            path = Path(folder) / "CC-MAIN-00000.warc.gz"
            build(options.data / source, path, options.megabytes * 1_000_000)
            found[name] = measured(path, options.rounds)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    facts = {"megabytes": options.megabytes, "rounds": options.rounds, "peak_mb": peak, "fastwarc": version("fastwarc")}
    print(save("commoncrawl", {"where": where(), "input": facts, "reading": found}))
    for name, rows in found.items():
        for reader, row in rows.items():
            figures = f"{row['cpu_s']:8.3f} CPU s {row['median_of_ratios']:6.3f}x (best {row['ratio_of_best']:.3f}x)"
            print(f"{name:14} {reader:32} {figures}  {row['pages']} pages")


if __name__ == "__main__":
    main()

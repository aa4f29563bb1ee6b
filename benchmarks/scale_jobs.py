"""The jobs whose cost `benchmarks.scale_model` measures: each a stage, or a step of one, on so many times a corpus.

A job runs in a process of its own: `run` starts it and adds up the CPU seconds of all its processes (those of a pool
are children of Python's fork server, which outlives whoever started it, so this process adopts what is left behind).
Its own CPU seconds are the driver's, the rest the workers'. Peaks are VmHWM of /proc, bytes are those of its product
and, at their most, of what it keeps on disk on the way.
"""

from __future__ import annotations

import ctypes
import gzip
import json
import math
import os
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa

from benchmarks.measuring import ROOT
from benchmarks.scale_corpus import SHARED, make_corpus, make_warc, texts
from llm_core.contract import Event, Progress

PAGES = 45
"""Pages of a WARC file: three tasks of clean."""
CLEANED = 3
"""WARC files of the corpus that clean reads."""
LISTED = 40
"""How often acquire reads each WARC file: reading is cheap beside the start of a process."""
TEXT_BYTES = 12_000_000
SAMPLE_BYTES = 4_000_000
DOCUMENTS = 200_000
"""So many that the signatures of half of them, 22 MB, are more than a processor keeps near itself."""
SORTED = 50_000
"""Documents that decide looks at or sorts at once: so few that the limit binds at every size, as it does at scale."""
STEPS = 12
UNITS = {
    "acquire": "WARC bytes",
    "clean": "pages",
    "decide": "documents",
    "vocabulary": "bytes",
    "tokenize": "bytes",
    "pretrain": "tokens",
}
ALONE = ("acquire", "decide", "vocabulary", "pretrain")
"""Jobs of one process. What it takes to read their modules, or to make up what they work on, is not counted."""
_SUBREAPER = 36


def run(job: str, folder: Path, times: float) -> dict[str, Any]:
    """Run a job on `times` the corpus; what it cost.

    Raises RuntimeError where this process has other children: all that end are counted, and waited for.
    """
    if psutil.Process().children():
        raise RuntimeError("a job is measured by a process that has no other children")
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SUBREAPER, 1)
    shutil.rmtree(folder / "job", ignore_errors=True)
    (folder / "job").mkdir()
    command = [sys.executable, "-m", "benchmarks.scale_jobs", job, str(folder), str(times)]
    began = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    peaks: dict[int, int] = {}
    watch = threading.Thread(target=_watch, args=(child.pid, peaks))
    watch.start()
    assert child.stdout is not None
    lines = child.stdout.read().splitlines()
    wall = time.perf_counter() - began
    total, status = _reaped(child.pid)
    child.returncode = status
    watch.join()
    if status:
        raise SystemExit(f"{job}: {' '.join(command)} ended with status {status}")
    found: dict[str, Any] = json.loads(lines[-1])
    found["worker_cpu_s"] = 0.0 if job in ALONE else max(0.0, total - found["driver_cpu_s"])
    found["worker_peak_mb"] = max((peak for pid, peak in peaks.items() if pid != child.pid), default=0) / 1e6
    return found | {"job": job, "times": times, "wall_s": wall}


def _reaped(pid: int) -> tuple[float, int]:
    """(CPU seconds of the process and of all that it leaves behind, its exit status)."""
    _, status, usage = os.wait4(pid, 0)
    total = usage.ru_utime + usage.ru_stime
    while True:
        try:
            _, _, usage = os.wait4(-1, 0)
        except ChildProcessError:
            return total, os.waitstatus_to_exitcode(status)
        total += usage.ru_utime + usage.ru_stime


def _watch(pid: int, peaks: dict[int, int]) -> None:
    """Note the largest resident set of the process and of each of its descendants until it ends."""
    while True:
        try:
            family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
            if family[0].status() == psutil.STATUS_ZOMBIE:
                return
            for process in family:
                peaks[process.pid] = max(peaks.get(process.pid, 0), peak_of(process.pid))
        except (psutil.NoSuchProcess, OSError):
            if not psutil.pid_exists(pid):
                return
        time.sleep(0.2)


def peak_of(pid: int | str = "self") -> int:
    """Largest resident set of a process so far, bytes (ru_maxrss would count that of whoever started it)."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0)


def size_of(folder: Path) -> int:
    """Bytes of the files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def prepare(folder: Path, most: int, jobs: Sequence[str], sizes: Sequence[float]) -> None:
    """What the jobs read: WARC files for `most` times the corpus, raw pages, corpora and shards of each size."""
    from llm_core.data import bpe

    if {"acquire", "clean"} & set(jobs):
        (folder / "crawl").mkdir()
        for number in range(most * (CLEANED if "clean" in jobs else 1)):
            make_warc(folder / "crawl", number, PAGES)
    if {"tokenize", "pretrain"} & set(jobs):
        bpe.train(texts(SAMPLE_BYTES), 4096).save(folder / "tokenizer")
    for times in sizes:
        if "clean" in jobs:
            raw_pages(folder, times)
        if "tokenize" in jobs or ("pretrain" in jobs and times == 1):
            make_corpus(folder / f"corpus-{times:g}", int(times * TEXT_BYTES))
    if "pretrain" in jobs:
        run("tokenize", folder, 1)
        (folder / "job" / "shards").rename(folder / "shards")


def acquire(folder: Path, times: float) -> dict[str, float]:
    """Read WARC files as the source common_crawl does: LISTED times each of so many files."""
    from llm_core.data import acquire
    from llm_core.settings.acquire import AcquireConfig, CommonCrawlSource

    out = folder / "job"
    files = _listing(folder, times, round(LISTED * min(times, 1)))
    source = CommonCrawlSource(kind="common_crawl", name="web", crawl="bench", prefix=str(folder / "crawl"),
                               listing="listing.gz")  # fmt: skip
    config = AcquireConfig(sources=(source,), store=out / "store")
    (out / "scratch").mkdir()
    began = time.process_time()
    report = acquire.run(config, out=out / "raw", scratch=out / "scratch", emit=lambda _: None)
    spent = time.process_time() - began
    units = float(sum(path.stat().st_size for path in files))
    return {"units": units, "out_bytes": size_of(out / "raw"), "scratch_bytes": 0.0, "driver_cpu_s": spent,
            "pages": report.metrics["pages"]}  # fmt: skip


def _listing(folder: Path, times: float, repeated: int = 1) -> list[Path]:
    """The first WARC files, so many, each listed so often."""
    files = sorted((folder / "crawl").glob("*.warc.gz"))[: max(1, round(times))] * repeated
    (folder / "crawl" / "listing.gz").write_bytes(gzip.compress("\n".join(path.name for path in files).encode()))
    return files


def raw_pages(folder: Path, times: float) -> Path:
    """The raw product of `times` CLEANED WARC files, made by acquire; the last one in part if need be."""
    from llm_core.data import acquire
    from llm_core.settings.acquire import AcquireConfig, CommonCrawlSource

    raw = folder / f"raw-{times:g}"
    if not raw.exists():
        _listing(folder, math.ceil(times * CLEANED))
        limit = max(1, round(times * CLEANED * PAGES))
        source = CommonCrawlSource(kind="common_crawl", name="web", crawl="bench", prefix=str(folder / "crawl"),
                                   listing="listing.gz", limit=limit)  # fmt: skip
        config = AcquireConfig(sources=(source,), store=folder / "store")
        (folder / "scratch").mkdir(exist_ok=True)
        acquire.run(config, out=raw, scratch=folder / "scratch", emit=lambda _: None)
    return raw


def clean(folder: Path, times: float) -> dict[str, float]:
    """Extract, filter, mask, sign, look for evaluation items, decide and write, with two worker processes."""
    from llm_core.data import clean
    from llm_core.settings.clean import CleanConfig

    out, most, pieces = folder / "job", 0, 0
    for name in ("rules", "lists", "heldout", "scratch"):
        (out / name).mkdir()
    shutil.copy(SHARED / "gsm8k" / "test.jsonl", out / "heldout")
    inputs = {name: out / name for name in ("rules", "lists", "heldout", "scratch")}

    def look(event: object) -> None:
        nonlocal most, pieces
        most = max(most, size_of(out / "scratch"))
        pieces += isinstance(event, Progress) and event.unit == "rows"

    raw = folder / f"raw-{times:g}"
    report = clean.run(CleanConfig(workers=2), raw=raw, out=out / "corpus", emit=look, **inputs)
    pages = sum(row["in"] for row in report.tables["funnel"])  # type: ignore[misc]
    figures = {"kept": report.metrics["documents"], "text_bytes": report.metrics["text_bytes"]}
    figures |= {"warc_bytes": float(size_of(raw / "web" / "warc")), "pieces": float(pieces)}
    return {"units": float(pages), "out_bytes": size_of(out / "corpus"), "scratch_bytes": float(most), **figures}


def decide(folder: Path, times: float) -> dict[str, float]:
    """What clean's driver does with the index of so many documents: order it, and decide which copies stay.

    Made up: one in five is a near copy, one in a hundred has the address of another source's, one in fifty the text.
    The making is not counted. What is looked at or sorted at once is limited, so that parts are made at every size.
    """
    from llm_core.data import dedup, neardup, spill

    out, count = folder / "job", int(times * DOCUMENTS)
    found, rng, most, spent = spill.Findings(out), np.random.default_rng(0), 0, 0.0
    divide = neardup._divide

    def looked(*arguments: Any) -> None:
        nonlocal most
        divide(*arguments)
        most = max(most, size_of(out))

    neardup._divide = looked
    dedup.MOST_AT_ONCE = neardup._CHUNK = SORTED
    dedup.labels = partial(neardup.labels, memory=SORTED * neardup._ENTRY_BYTES)
    for batch in _index(count, rng):
        began = time.process_time()
        found.add(batch)
        spent += time.process_time() - began
    began = time.process_time()
    table, rows = found.ordered()
    copies = dedup.Duplicates(dedup.Index.of(table, rows))
    left = copies.by_identity(copies.by_address(np.arange(count)))
    kept = copies.by_likeness(left, found.signatures, 0.7)
    copies.leaders()
    spent += time.process_time() - began
    index = table.nbytes + copies.of.nbytes
    return {"units": float(count), "out_bytes": float(index), "scratch_bytes": float(most), "kept": float(len(kept)),
            "driver_cpu_s": spent}  # fmt: skip


def _index(count: int, rng: np.random.Generator) -> Iterator[pa.RecordBatch]:
    """Rows of the index as workers hand them back, 1,000 at a time."""
    from llm_core.data.minhash import FUNCTIONS
    from llm_core.data.spill import INDEX

    for start in range(0, count, 1_000):
        signatures = rng.integers(0, 1 << 16, (1_000, FUNCTIONS), dtype=np.uint16)
        changed = rng.random((200, FUNCTIONS)) < 0.1
        signatures[4::5] = np.where(changed, signatures[4::5], signatures[3::5])
        columns: dict[str, Any] = {name: [0] * 1_000 for name in INDEX.names}
        for name in ("tie_high", "tie_low", "id_high", "id_low", "address"):
            columns[name] = rng.integers(1, 1 << 62, 1_000)
        columns["source"] = np.arange(1_000) % 2
        for half in ("id_low", "id_high"):
            columns[half][50::50] = columns[half][49:-1:50]
        columns["address"][100::100] = columns["address"][99:-1:100]
        columns["size"] = rng.integers(500, 20_000, 1_000)
        columns["url"] = [f"https://host-{key % 999}.example/path/of-a-page/{key:x}" for key in columns["tie_high"]]
        columns["reason"] = [None] * 1_000
        columns["offset"] = np.arange(start, start + 1_000) * 5_000
        columns["signature"] = [row.tobytes() for row in signatures]
        yield pa.RecordBatch.from_pydict(columns, schema=INDEX).slice(0, min(1_000, count - start))


def vocabulary(folder: Path, times: float) -> dict[str, float]:
    """Train the tokenizer on a sample."""
    from llm_core.data import bpe

    sample = list(texts(int(times * SAMPLE_BYTES), seed=1, change=False))
    began = time.process_time()
    bpe.train(sample, 4096).save(folder / "job" / "tokenizer")
    spent = time.process_time() - began
    size = sum(len(text.encode()) for text in sample)
    return {"units": float(size), "out_bytes": size_of(folder / "job"), "scratch_bytes": 0.0, "driver_cpu_s": spent}


def tokenize(folder: Path, times: float) -> dict[str, float]:
    """Encode a corpus, with two worker processes whatever its size, by a tokenizer that is there."""
    from llm_core.data import tokenize
    from llm_core.settings.tokenize import TokenizeConfig

    corpus, out = folder / f"corpus-{times:g}", folder / "job"
    tokenize.ALONE_BYTES = 0
    (out / "scratch").mkdir()
    told: list[Event] = []
    config = TokenizeConfig(tokenizer="folder", tokenizer_folder=folder / "tokenizer", workers=2)
    report = tokenize.run(config, corpus=corpus, out=out / "shards", scratch=out / "scratch", emit=told.append)
    pieces = sum(isinstance(event, Progress) and "tokens" in event.figures for event in told)
    size = json.loads((corpus / "manifest.json").read_text())["facts"]["text_bytes"]
    return {"units": float(size), "out_bytes": size_of(out / "shards"), "scratch_bytes": 0.0,
            "tokens": report.metrics["train_tokens"], "pieces": float(pieces)}  # fmt: skip


def pretrain(folder: Path, times: float) -> dict[str, float]:
    """Train a small model for so many times STEPS steps on one core."""
    from llm_core.settings.pretrain import ModelSettings, PretrainConfig
    from llm_core.train import pretrain

    out, steps = folder / "job", max(1, round(times * STEPS))
    shape = ModelSettings(layers=3, width=96, heads=3, context=128)
    config = PretrainConfig(model=shape, steps=steps, batch_sequences=16, passes=1, threads=1, device="cpu",
                            evaluate_every=10_000_000, save_every_seconds=1e6, sample_tokens=1,
                            sample_prompts=("The",))  # fmt: skip
    (out / "scratch").mkdir()
    began = time.process_time()
    pretrain.run(config, shards=folder / "shards", out=out / "base", scratch=out / "scratch", emit=lambda _: None)
    spent = time.process_time() - began
    built = shape.build(4096)
    return {"units": float(steps * 16 * built.context), "out_bytes": size_of(out / "base"),
            "scratch_bytes": size_of(out / "scratch"), "driver_cpu_s": spent,
            "flops_per_token": float(built.flops_per_token())}  # fmt: skip


JOBS: dict[str, Callable[[Path, float], dict[str, float]]] = {
    "acquire": acquire,
    "clean": clean,
    "decide": decide,
    "vocabulary": vocabulary,
    "tokenize": tokenize,
    "pretrain": pretrain,
}


def main(job: str, folder: str, times: str) -> None:
    """Run a job here and print what it cost this process."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    figures = JOBS[job](Path(folder), float(times))
    own = {"driver_cpu_s": time.process_time(), "driver_peak_mb": peak_of() / 1e6}
    print(json.dumps(own | figures))


if __name__ == "__main__":
    main(*sys.argv[1:])

"""What the data stages cost as they grow: `python -m benchmarks.scale [--only workers,growth,outofcore]`.

workers    clean and tokenize of the same documents by two processes of this machine (the process pool) and by two Dask
           workers (a scheduler and two worker processes on loopback, started before), alternating, three rounds:
           documents a second of the stages' wall time with its start and without (what 100 documents take subtracted:
           the pool starts its processes in each stage, the cluster is there), medians; products must be equal
growth     the same on Dask at 1x, 4x and 16x the documents, in as many times the shards (row groups), and at 4x the
           documents in 4x and 16x the shards: the driver's peak memory in each stage, and CPU seconds a document of
           driver, scheduler and workers together, a run of 100 documents subtracted
outofcore  exact and near duplicates of 5,000,000 synthetic documents by their index and signatures, a tenth of them
           near copies: peak memory of the process, seconds, duplicates found; and decontamination of a stream of texts
           against an evaluation set: how much memory grows after a tenth of them

Documents are windows of 300 words of wikitext-2 with a tenth of their words replaced, seeded. Figures go to
benchmarks/results/scale.json.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.measuring import ROOT, save, where
from benchmarks.scale_jobs import peak_of
from llm_core import artifacts
from llm_core.data import clean, decontaminate, dedup, tokenize
from llm_core.data.document import RAW_DOCUMENTS
from llm_core.data.minhash import FUNCTIONS
from llm_core.settings.clean import CleanConfig
from llm_core.settings.cluster import ClusterSettings
from llm_core.settings.tokenize import TokenizeConfig

PARTS = ("workers", "growth", "outofcore")
ROUNDS = 3
SHARD = 500
"""Documents in a row group."""
SIGNATURES = 5_000_000
LIMIT_MB = 1_500


def words() -> list[str]:
    """The words of wikitext-2's training split."""
    return (ROOT.parent / "shared" / "data" / "wikitext2" / "train.txt").read_text().split()


def texts(count: int, seed: int = 1) -> Iterator[str]:
    """Distinct documents of 300 words, the first of them the same for any count."""
    known, rng = words(), random.Random(seed)
    for _ in range(count):
        start = rng.randrange(len(known) - 300)
        yield " ".join(rng.choice(known) if rng.random() < 0.1 else word for word in known[start : start + 300])


def make_raw(folder: Path, count: int, shard: int = SHARD) -> Path:
    """A raw product of so many documents, `shard` in a row group."""
    with artifacts.new_product(folder, "raw", {"sources": {"a": {"kind": "files", "licence": "MIT"}}}) as product:
        (product / "a").mkdir()
        rows = [
            {"url": f"https://a.example/{number:08d}", "text": text, "content_type": "text/plain"}
            for number, text in enumerate(texts(count))
        ]
        table = pa.Table.from_pylist(rows, RAW_DOCUMENTS)
        pq.write_table(table, product / "a" / "documents.parquet", row_group_size=shard)
    return folder


@contextmanager
def dask_cluster(folder: Path, workers: int = 2) -> Iterator[tuple[str, list[int]]]:
    """(address, ids of all its processes) of a scheduler and workers of one thread each on loopback."""
    started: list[subprocess.Popen[bytes]] = []

    def start(what: str, *options: str) -> None:
        command = [sys.executable, "-m", f"distributed.cli.dask_{what}", *options, "--no-dashboard"]
        with open(folder / f"{what}-{len(started)}.log", "wb") as log:
            started.append(subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT))

    try:
        start("scheduler", "--host", "127.0.0.1", "--port", "0")
        while not (found := re.search(r"Scheduler at: +(tcp://\S+)", (folder / "scheduler-0.log").read_text())):
            time.sleep(0.1)
        for _ in range(workers):
            start("worker", found[1], "--nthreads", "1", "--no-nanny", "--host", "127.0.0.1")
        yield found[1], [process.pid for process in started]
    finally:
        for process in started[::-1]:
            process.kill()
            process.wait()


def stages(raw: Path, folder: Path, address: str | None) -> dict[str, Any]:
    """clean and tokenize in a process of their own: what `child` measured."""
    shutil.rmtree(folder, ignore_errors=True)
    for name in ("rules", "lists", "heldout", "scratch"):
        (folder / name).mkdir(parents=True)
    job = json.dumps({"raw": str(raw), "folder": str(folder), "address": address})
    command = [sys.executable, "-m", "benchmarks.scale", "--child", job]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def child(job: dict[str, Any]) -> dict[str, Any]:
    """Run both stages here; wall and own CPU seconds, peak memory in MB after each, digests."""
    raw, folder = Path(job["raw"]), Path(job["folder"])
    kind = ClusterSettings(kind="dask", address=job["address"]) if job["address"] else ClusterSettings()
    inputs = {name: folder / name for name in ("rules", "lists", "heldout", "scratch")}
    began, used = time.perf_counter(), time.process_time()
    cleaning = CleanConfig(workers=2, cluster=kind)
    report = clean.run(cleaning, raw=raw, out=folder / "corpus", emit=lambda _: None, **inputs)
    cleaned, clean_peak = time.perf_counter(), peak_of() / 1e6
    tokenize.ALONE_BYTES = 0  # two processes of the pool, as with a larger corpus
    tokenizing = TokenizeConfig(vocab_size=1024, sample_bytes=100_000, workers=2, cluster=kind)
    tokenize.run(
        tokenizing, corpus=folder / "corpus", out=folder / "shards", scratch=folder / "scratch", emit=lambda _: None
    )
    ended = time.perf_counter()
    return {
        "clean_s": cleaned - began,
        "tokenize_s": ended - cleaned,
        "cpu_s": time.process_time() - used,
        "clean_peak_mb": clean_peak,
        "peak_mb": peak_of() / 1e6,
        "kept": report.metrics["documents"],
        "digests": [artifacts.digest(folder / name) for name in ("corpus", "shards")],
    }


def workers(folder: Path, documents: int) -> dict[str, Any]:
    """Two processes of the pool against two Dask workers."""
    count = 4 * documents
    raw, few = make_raw(folder / "raw-workers", count), make_raw(folder / "raw-few", 100)
    found: dict[str, list[dict[str, Any]]] = {"pool": [], "dask": []}
    start: dict[str, list[dict[str, Any]]] = {"pool": [], "dask": []}
    with dask_cluster(folder) as (address, _):
        stages(few, folder / "warm", address)  # the cluster's workers have read their modules, as in a longer run
        for _ in range(ROUNDS):
            for name, where_ in (("pool", None), ("dask", address)):
                start[name].append(stages(few, folder / name, where_))
                found[name].append(stages(raw, folder / name, where_))
    digests = {tuple(run["digests"]) for runs in found.values() for run in runs}
    assert len(digests) == 1, "the products differ"
    result: dict[str, Any] = {"documents": count, "rounds": ROUNDS, "same_bytes": True, "wanted": 0.9}
    for stage in ("clean_s", "tokenize_s"):
        whole = {name: median(run[stage] for run in runs) for name, runs in found.items()}
        begin = {name: median(run[stage] for run in runs) for name, runs in start.items()}
        net = {name: whole[name] - begin[name] for name in whole}
        result[stage.removesuffix("_s")] = {
            "seconds": {name: round(value, 3) for name, value in whole.items()},
            "start_seconds": {name: round(value, 3) for name, value in begin.items()},
            "dask_over_pool": round(whole["pool"] / whole["dask"], 3),
            "dask_over_pool_without_start": round(net["pool"] / net["dask"], 3),
        }
    return result


def growth(folder: Path, documents: int) -> dict[str, Any]:
    """Driver memory and cost a document at 1x, 4x and 16x."""
    rows = []
    with dask_cluster(folder) as (address, pids):
        processes = [psutil.Process(pid) for pid in pids]

        def used() -> float:
            family = [p for process in processes for p in (process, *process.children(recursive=True))]
            return sum(sum(p.cpu_times()[:4]) for p in family)

        def measure(count: int, shard: int = SHARD) -> dict[str, Any]:
            raw = make_raw(folder / "raw-growth", count, shard)
            before = used()
            run = stages(raw, folder / "grown", address)
            shards = -(-count // shard)
            return run | {"cpu_s": run["cpu_s"] + used() - before, "documents": count, "shards": shards}

        measure(100)  # modules are read
        start = median(measure(100)["cpu_s"] for _ in range(ROUNDS))
        first = sorted((measure(documents) for _ in range(ROUNDS)), key=lambda run: float(run["cpu_s"]))[ROUNDS // 2]
        found = [first, *(measure(times * documents) for times in (4, 16))]
        cut = measure(4 * documents, SHARD // 4)
    rows = [
        {"documents": run["documents"], "shards": run["shards"], "kept": run["kept"]}
        | {"clean_driver_peak_mb": round(run["clean_peak_mb"], 1), "driver_peak_mb": round(run["peak_mb"], 1)}
        | {"cpu_ms_per_document": round(1000 * (run["cpu_s"] - start) / (run["documents"] - 100), 3)}
        | {"wall_s": round(run["clean_s"] + run["tokenize_s"], 2)}
        for run in (*found, cut)
    ]
    costs = [row["cpu_ms_per_document"] for row in rows]
    grown = 1e6 * (rows[2]["driver_peak_mb"] - rows[0]["driver_peak_mb"])
    return {
        "rows": rows,
        "start_cpu_s": round(start, 2),
        "cost_max_over_min": round(max(costs) / min(costs), 3),
        "cost_wanted": 1.1,
        "driver_memory_of_4x_the_shards": round(rows[3]["driver_peak_mb"] / rows[1]["driver_peak_mb"], 3),
        "driver_memory_of_16x_the_documents": round(rows[2]["driver_peak_mb"] / rows[0]["driver_peak_mb"], 3),
        "driver_bytes_per_document": round(grown / (rows[2]["documents"] - rows[0]["documents"])),
    }


def outofcore(folder: Path, _: int) -> dict[str, Any]:
    """The duplicates of 5 million documents, in a process of their own."""
    command = [sys.executable, "-m", "benchmarks.scale", "--child", json.dumps({"outofcore": str(folder)})]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer | {"limit_mb": LIMIT_MB}


def duplicates(folder: Path) -> dict[str, Any]:
    """Exact, then near duplicates of synthetic documents; peak memory in MB after each."""
    count, rng = SIGNATURES, np.random.default_rng(0)
    with open(folder / "signatures", "wb") as file:
        for _ in range(count // 100_000):
            found = rng.integers(0, 1 << 16, (100_000, FUNCTIONS), dtype=np.uint16)
            copies = np.arange(9, 100_000, 10)
            changed = rng.random((len(copies), FUNCTIONS)) < 0.12
            noise = rng.integers(0, 1 << 16, changed.shape, dtype=np.uint16)
            found[copies] = np.where(changed, noise, found[copies - 1])
            file.write(found.tobytes())
    identity = np.arange(count, dtype=np.uint64)
    identity[3::100] = identity[2::100]  # one in a hundred says the same as the one before
    address = np.arange(1, count + 1, dtype=np.uint64)
    address[6::100] = address[5::100]
    source = (np.arange(count) % 2).astype(np.int32)
    size = rng.integers(1, 5_000, count).astype(np.int32)
    halves = np.stack([identity, identity], axis=1)
    index = dedup.Index(source, size, halves, address, np.arange(count))
    del identity
    copies_of, result = dedup.Duplicates(index), dict[str, Any](documents=count, planted_near=count // 10)
    left, began = np.arange(count), time.perf_counter()
    for name in ("address", "identity", "likeness"):
        before = len(left)
        if name == "likeness":
            left = copies_of.by_likeness(left, folder / "signatures", 0.7)
        else:
            left = getattr(copies_of, f"by_{name}")(left)
        result[name] = {"dropped": before - len(left), "peak_mb": round(peak_of() / 1e6)}
        result[name]["s"], began = round(time.perf_counter() - began, 1), time.perf_counter()
    result["peak_mb"] = result["likeness"]["peak_mb"]
    return result | {"decontamination": stream()}


def stream(count: int = 100_000) -> dict[str, Any]:
    """Texts against an index of 2,000 evaluation items: the hits, and how much memory grew after a tenth of them."""
    known = list(texts(2_000, seed=2))
    index = decontaminate.Index([("set", str(number), text) for number, text in enumerate(known)])
    hits, process, early = 0, psutil.Process(), 0.0
    made = texts(count, seed=3)
    for number in range(0, count, 100):
        batch = [next(made) for _ in range(100)]
        batch[0] = known[number // 100 % len(known)]
        hits += any(hit.item == str(number // 100 % len(known)) for hit in index.hits_of(batch)[0])
        if number == count // 10:
            early = process.memory_info().rss / 1e6
    grown = process.memory_info().rss / 1e6 - early
    return {"texts": count, "planted": count // 100, "found": hits, "grown_mb": round(grown, 1)}


def main() -> None:
    """Measure the parts that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PARTS))
    parser.add_argument("--documents", type=int, default=2_000, help="1x")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if options.child:
        job = json.loads(options.child)
        print(json.dumps(duplicates(Path(job["outofcore"])) if "outofcore" in job else child(job)))
        return
    calls = {"workers": workers, "growth": growth, "outofcore": outofcore}
    for name in options.only.split(","):
        with tempfile.TemporaryDirectory(dir=ROOT / ".groundup" if (ROOT / ".groundup").is_dir() else None) as folder:
            part = calls[name](Path(folder), options.documents) | {"where": where()}
        print(name, json.dumps(part, indent=2), flush=True)
        save("scale", {name: part})


if __name__ == "__main__":
    main()

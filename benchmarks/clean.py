"""What cleaning costs: `python -m benchmarks.clean [--only filters,duplicates,stage,index] [--peers DIR] [--sizes MB]`.

filters     Gopher repetition + Gopher quality + C4 + FineWeb on 200 real documents, datatrove (with its own spaCy word
            split) beside us, alternating, three rounds, CPU seconds
duplicates  MinHash signatures of 7,109 documents of 480 words, 2,370 of them planted copies with 0.2% to 5% of their
            words replaced: documents/s, bytes a document, recall by true similarity; beside it numpy's functions and
            datatrove's signatures
stage       the whole stage from raw text documents with its default filters and near duplicates: text per CPU second of
            all processes, and the largest process, by size of the input in MB

index       what the main process does between reading and writing, for 500,000 documents (5 GB at 10 kB each), a
            fifth of them copies: index, order, duplicates, near duplicates from their signatures, without the texts

Figures go to benchmarks/results/clean.json, each part with where it was measured.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.measuring import ROOT, save, where
from llm_core import artifacts
from llm_core.data import minhash
from llm_core.data.document import RAW_DOCUMENTS
from llm_core.data.filters import FilterOptions, judge
from llm_core.data.neardup import labels

DATA = ROOT.parent / "shared" / "data"
PARTS = ("filters", "duplicates", "stage", "index")
ROUNDS = 3


def cpu_seconds(call: Callable[[], object]) -> float:
    """CPU seconds of one call in this process."""
    began = time.process_time()
    call()
    return time.process_time() - began


def peer(python: Path, what: str, texts: list[str]) -> dict[str, Any]:
    """CPU seconds and decisions of datatrove, in a process of its own."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(texts, file)
        file.flush()
        command = [str(python), "-P", str(ROOT / "benchmarks" / "clean_peer.py"), what, file.name]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def filters(python: Path) -> dict[str, Any]:
    """The chain beside datatrove's."""
    with gzip.open(DATA / "filters" / "datatrove_decisions.jsonl.gz", "rt") as file:
        texts = [json.loads(line)["text"] for line in file][::3]
    options = FilterOptions(c4_quality=True, fineweb_quality=True, mode="datatrove")
    ours, theirs, agree = [], [], 0
    for _ in range(ROUNDS):
        began = time.process_time()
        decisions = [judge(text, options)[0] or "keep" for text in texts]
        ours.append(time.process_time() - began)
        answer = peer(python, "chain", texts)
        theirs.append(answer["cpu_s"])
        agree = sum((a == "keep") == (b == "keep") for a, b in zip(decisions, answer["decisions"], strict=True))
    size = sum(len(text.encode()) for text in texts)
    mine, peers = float(np.median(ours)), float(np.median(theirs))
    return {
        "documents": len(texts),
        "megabytes": round(size / 1e6, 2),
        "ours_documents_per_cpu_s": round(len(texts) / mine, 1),
        "ours_megabytes_per_cpu_s": round(size / 1e6 / mine, 2),
        "datatrove_documents_per_cpu_s": round(len(texts) / peers, 1),
        "times_datatrove": round(peers / mine, 1),
        "same_keep_or_drop": f"{agree} of {len(texts)} (datatrove splits words by spaCy here)",
        "ours_cpu_s": [round(value, 3) for value in ours],
        "datatrove_cpu_s": [round(value, 3) for value in theirs],
    }


def planted(seed: int = 7) -> tuple[list[str], list[tuple[int, int, float]]]:
    """(texts, (original, copy, true Jaccard similarity of their word 5-grams))."""
    words = (DATA / "wikitext2" / "train.txt").read_text().split()
    rng = random.Random(seed)
    originals = 4_739
    starts = [int(place * (len(words) - 480) / originals) for place in range(originals)]
    texts = [" ".join(words[start : start + 480]) for start in starts]
    copies = []
    for number in range(2_370):
        original = 2 * number
        share = rng.choice((0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05))
        copy = [rng.choice(words) if rng.random() < share else word for word in texts[original].split()]
        texts.append(" ".join(copy))
        copies.append((original, len(texts) - 1, jaccard(texts[original], texts[-1])))
    return texts, copies


def jaccard(a: str, b: str) -> float:
    """True similarity of the sets of word 5-grams."""
    sets = []
    for text in (a, b):
        words = re.findall(r"\w+", text.lower())
        sets.append({tuple(words[place : place + 5]) for place in range(len(words) - 4)})
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def duplicates(python: Path) -> dict[str, Any]:
    """Signatures and recall."""
    texts, copies = planted()
    result: dict[str, Any] = {"documents": len(texts), "bytes_per_document": minhash.BYTES}
    rensa = minhash.RMinHash
    timings: dict[str, list[float]] = {"rensa": [], "numpy": []}
    for _ in range(ROUNDS):
        for name in timings:
            minhash.RMinHash = rensa if name == "rensa" else None
            timings[name].append(cpu_seconds(lambda: minhash.signatures(texts)))
    for name, seconds in timings.items():
        minhash.RMinHash = rensa if name == "rensa" else None
        found, _ = minhash.signatures(texts)
        result[name] = {
            "documents_per_cpu_s": round(len(texts) / float(np.median(seconds)), 0),
            "cpu_s": [round(value, 3) for value in seconds],
            **quality(texts, copies, found),
        }
    minhash.RMinHash = rensa
    sample = texts[:200]
    result["datatrove_documents_per_cpu_s"] = round(len(sample) / peer(python, "signatures", sample)["cpu_s"], 1)
    return result


def quality(texts: list[str], copies: list[tuple[int, int, float]], found: minhash.Signatures) -> dict[str, Any]:
    """Recall of planted copies by true similarity, and how many texts were joined with a first one wrongly."""
    with tempfile.TemporaryDirectory() as name:
        file, every, found_labels = Path(name) / "signatures", np.arange(len(texts)), list[np.ndarray]()
        file.write_bytes(found.tobytes())
        seconds = cpu_seconds(lambda: found_labels.append(labels(file, every, 0.7, Path(name) / "bands")))
    label = found_labels[0]
    result: dict[str, Any] = {"pairs_cpu_s": round(seconds, 3)}
    for low, high in ((0.8, 1.01), (0.8, 0.9), (0.7, 0.8)):
        close = [(a, b) for a, b, similarity in copies if low <= similarity < high]
        hits = sum(label[a] == label[b] for a, b in close)
        name = f"{low} to {min(high, 1.0):.1f}"
        result[f"recall_{name}"] = {"found": int(hits), "of": len(close), "share": round(hits / len(close), 4)}
    true = [jaccard(texts[a], texts[b]) for b, a in enumerate(label.tolist()) if a != b]
    result["joined_pairs"] = len(true)
    result["joined_below_0.6"] = sum(value < 0.6 for value in true)
    return result


def make_raw(out: Path, megabytes: int, seed: int = 3) -> int:
    """A raw product of text documents of about 10 kB, from lines of Wikipedia with words replaced; bytes of text."""
    lines = [line for line in (DATA / "wikitext2" / "train.txt").read_text().split("\n") if len(line) > 200]
    words = " ".join(lines[:4_000]).split()
    rng = random.Random(seed)
    total = 0
    with artifacts.new_product(out, "raw", {"sources": {"bench": {"kind": "files", "licence": "CC BY-SA"}}}) as product:
        (product / "bench").mkdir()
        path = product / "bench" / "documents.parquet"
        with pq.ParquetWriter(path, RAW_DOCUMENTS, compression="zstd") as writer:
            number = 0
            while total < megabytes * 1_000_000:
                rows = []
                for _ in range(1_000):
                    text = "\n".join(document(rng, lines, words))
                    total += len(text.encode())
                    url = f"https://bench.example/{rng.getrandbits(64):016x}"
                    rows.append({"url": url, "text": text, "content_type": "text/plain"})
                    number += 1
                writer.write_table(pa.Table.from_pylist(rows, schema=RAW_DOCUMENTS))
    return total


def document(rng: random.Random, lines: list[str], words: list[str]) -> Iterator[str]:
    """Lines of a document, a word in about thirty replaced; one document in ten is short."""
    for _ in range(rng.randint(1, 3) if rng.random() < 0.1 else rng.randint(8, 22)):
        parts = rng.choice(lines).split(" ")
        for _ in range(len(parts) // 30):
            parts[rng.randrange(len(parts))] = rng.choice(words)
        yield " ".join(parts)


class Watch:
    """The largest resident size of each process under this one, and the CPU seconds of all."""

    def __init__(self) -> None:
        self.largest: dict[int, int] = {}
        self.seconds: dict[int, float] = {}
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()

    def _look(self) -> None:
        me = psutil.Process()
        while not self._done.wait(0.2):
            for process in [me, *me.children(recursive=True)]:
                try:
                    with process.oneshot():
                        size, times = process.memory_info().rss, process.cpu_times()
                except psutil.Error:
                    continue
                self.largest[process.pid] = max(size, self.largest.get(process.pid, 0))
                self.seconds[process.pid] = times.user + times.system


def one_stage(raw: Path, folder: Path, workers: int) -> dict[str, Any]:
    """Run the stage in this process, watched."""
    import os

    from llm_core.data import clean
    from llm_core.settings.clean import CleanConfig

    for name in ("rules", "lists", "heldout"):
        (folder / name).mkdir(exist_ok=True)
    with Watch() as watch:
        began = time.perf_counter()
        report = clean.run(
            CleanConfig(workers=workers),
            raw=raw,
            rules=folder / "rules",
            lists=folder / "lists",
            heldout=folder / "heldout",
            out=folder / "corpus",
            scratch=folder / "scratch",
            emit=lambda _: None,
        )
        wall = time.perf_counter() - began
    me = os.getpid()
    others = [size for pid, size in watch.largest.items() if pid != me]
    return {
        "wall_s": round(wall, 1),
        "cpu_s": round(sum(watch.seconds.values()), 1),
        "parent_cpu_s": round(watch.seconds.get(me, 0.0), 1),
        "parent_rss_mb": round(watch.largest[me] / 1e6),
        "largest_worker_rss_mb": round(max(others, default=0) / 1e6),
        **{name: int(value) for name, value in report.metrics.items()},
    }


def stage(sizes: list[int], workers: int) -> list[dict[str, Any]]:
    """The whole stage, each size in a process of its own."""
    rows = []
    for size in sizes:
        with tempfile.TemporaryDirectory(prefix="groundup-clean-") as name:
            folder = Path(name)
            total = make_raw(folder / "raw", size)
            command = [sys.executable, "-m", "benchmarks.clean", "--stage-once", name, "--workers", str(workers)]
            done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
            row = json.loads(done.stdout.splitlines()[-1])
        row = {"input_mb": round(total / 1e6), "mb_per_cpu_s": round(total / 1e6 / row["cpu_s"], 2), **row}
        print(row)
        rows.append(row)
    return rows


def index(count: int = 500_000) -> dict[str, Any]:
    """The parent's own work in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.clean", "--index-once", str(count)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def one_index(count: int) -> dict[str, Any]:
    """Random signatures, every fifth near that of an earlier document, through the stage's own functions."""
    from llm_core.data.dedup import Duplicates, Index
    from llm_core.data.spill import INDEX, Findings

    random_numbers = np.random.default_rng(0)
    pool = random_numbers.integers(0, 2**16, (1_000, minhash.FUNCTIONS), dtype=np.uint16)
    with tempfile.TemporaryDirectory() as name:
        found = Findings(Path(name))
        before = psutil.Process().memory_info().rss
        began = time.process_time()
        for start in range(0, count, 1_000):
            signatures = random_numbers.integers(0, 2**16, (1_000, minhash.FUNCTIONS), dtype=np.uint16)
            signatures[:200] = np.where(random_numbers.random((200, 1)) < 0.5, pool[start // 1_000 % 1_000], pool[:200])
            signatures[:200, :9] += np.arange(200, dtype=np.uint16)[:, None]
            halves = random_numbers.integers(0, 2**63, (4, 1_000))
            columns: dict[str, Any] = {column: [0] * 1_000 for column in INDEX.names}
            columns |= {"url": [f"https://a-host.example/path/of-a-page/{number:016x}.html" for number in halves[0]]}
            columns |= dict(zip(("tie_high", "tie_low", "id_high", "id_low"), halves.tolist(), strict=True))
            columns |= {"reason": [None] * 1_000, "size": random_numbers.integers(1, 20_000, 1_000).tolist()}
            columns["signature"] = [row.tobytes() for row in signatures]
            found.add(pa.RecordBatch.from_pydict(columns, schema=INDEX))
        filled = time.process_time()
        table, rows = found.ordered()
        copies = Duplicates(Index.of(table, rows))
        left = copies.by_identity(copies.by_address(np.arange(count)))
        left = copies.by_likeness(left, found.signatures, 0.7)
        copies.leaders()
        seconds = time.process_time() - filled
        on_disk = found.signatures.stat().st_size
    import resource

    return {
        "documents": count,
        "left": len(left),
        "signature_bytes_per_document": on_disk / count,
        "index_cpu_s": round(filled - began, 1),
        "decide_cpu_s": round(seconds, 1),
        "rss_before_mb": round(before / 1e6),
        "largest_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6),
    }


def main() -> None:
    """Measure the parts that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PARTS))
    parser.add_argument("--peers", type=Path, default=ROOT / ".venv-peers")
    parser.add_argument("--sizes", default="100,1000")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--stage-once", type=Path)
    parser.add_argument("--index-once", type=int)
    given = parser.parse_args()
    if given.stage_once:
        print(json.dumps(one_stage(given.stage_once / "raw", given.stage_once, given.workers)))
        return
    if given.index_once:
        print(json.dumps(one_index(given.index_once)))
        return
    python = given.peers / "bin" / "python"
    measure: dict[str, Callable[[], Any]] = {
        "filters": lambda: filters(python),
        "duplicates": lambda: duplicates(python),
        "index": index,
        "stage": lambda: stage([int(size) for size in given.sizes.split(",")], given.workers),
    }
    for name in given.only.split(","):
        began = where()
        figures = {"where": began, "figures": measure[name]()}
        print(json.dumps(figures["figures"], indent=2))
        save("clean", {name: figures})


if __name__ == "__main__":
    main()

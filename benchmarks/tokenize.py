"""What tokenizing costs beside bare `tokenizers` and bare tiktoken: `python -m benchmarks.tokenize [--only train,...]`.

train   BPE training on a list of texts: `llm_core.data.bpe.train` against a `tokenizers` trainer fed with the same list
encode  documents to ids: the stage's worker, which reads Parquet, encodes, counts and packs, against bare tiktoken over
        a list of texts in memory, in its faster form (`encode_to_numpy`) and its plain one
workers the whole stage with one and with two worker processes, by the clock: only a machine with two idle cores tells
check   how fast `Shards.open` goes through shards, beside SHA-256 alone
memory  high-water mark of the parent and of each worker, for every size of `--sizes`

The text is what lies in shared/data (31 MB: Wikipedia, plays, manuals, problems, dialogues), repeated to the size asked
for. CPU seconds are of all threads; ours and the peer take turns, medians are compared. Figures go to
benchmarks/results/tokenize.json with the commit, versions, device and load they were measured on.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import os
import re
import shutil
import statistics
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
import tiktoken
import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from benchmarks.measuring import ROOT, save, where
from llm_core import artifacts
from llm_core.artifacts import new_product
from llm_core.data import bpe
from llm_core.data.bpe import Tokenizer
from llm_core.data.document import identity, split_of
from llm_core.data.encoding import Plan, encode_documents
from llm_core.data.reading import slices
from llm_core.data.shards import SPLITS, Shards, ShardWriter, describe

SHARED = ROOT.parent / "shared" / "data"
PARTS = ("train", "encode", "workers", "check", "memory")
VOCABULARY = 8_192
ROW_GROUP = 1_000
DIALOGUES = pa.schema(
    [(name, pa.string()) for name in ("id", "source", "split", "kind")]
    + [("messages", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())])))]
)
STAGE = """
import sys
from pathlib import Path
from llm_core.data import tokenize
from llm_core.settings.tokenize import TokenizeConfig
if __name__ == "__main__":
    settings, corpus, out, scratch = sys.argv[1:]
    Path(scratch).mkdir(exist_ok=True)
    config = TokenizeConfig.model_validate_json(settings)
    tokenize.run(config, corpus=Path(corpus), out=Path(out), scratch=Path(scratch), emit=lambda event: None)
"""


def real_texts() -> Iterator[tuple[str, str]]:
    """(source, text) of what lies in shared/data."""
    for name in ("train", "valid", "test"):
        articles = re.split(r"(?m)^(?= = [^=])", (SHARED / "wikitext2" / f"{name}.txt").read_text(encoding="utf-8"))
        yield from (("wikipedia", article) for article in articles)
    play = (SHARED / "tinyshakespeare" / "input.txt").read_text(encoding="utf-8").split("\n\n")
    yield from (("plays", "\n\n".join(scene)) for scene in zip(*[iter(play)] * 40, strict=False))
    for row in _json_lines(SHARED / "filters" / "datatrove_decisions.jsonl.gz"):
        yield "manuals", row["text"]
    for row in _json_lines(SHARED / "gsm8k" / "train.jsonl"):
        yield "problems", f"{row['question']}\n{row['answer']}"
    for name in ("harmless", "helpful"):
        for row in _json_lines(SHARED / "hh_rlhf" / f"{name}-base.test.jsonl.gz"):
            yield "talk", row["chosen"]


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as file:
        yield from map(json.loads, file)


def make_corpus(folder: Path, size: int) -> int:
    """A corpus of about `size` bytes of text, as clean writes it; the bytes there are."""
    texts = sorted(pair for pair in real_texts() if pair[1].strip())
    once = sum(len(text.encode()) for _, text in texts)
    copies, total = max(1, round(size / once)), 0
    with new_product(folder, "corpus", {"text_bytes": once * copies}) as product:
        with pq.ParquetWriter(product / "documents.parquet", pa.schema(_COLUMNS), compression="zstd") as writer:
            for source, group in itertools.groupby(texts, key=lambda pair: pair[0]):
                members = [text for _, text in group]
                for copy in range(copies):
                    for start in range(0, len(members), ROW_GROUP):
                        rows = [_row(source, text, copy) for text in members[start : start + ROW_GROUP]]
                        total += sum(len(row["text"].encode()) for row in rows)
                        writer.write_table(pa.Table.from_pylist(rows, schema=pa.schema(_COLUMNS)))
        pq.write_table(pa.Table.from_pylist([], schema=DIALOGUES), product / "dialogues.parquet")
    return total


_COLUMNS = [(name, pa.string()) for name in ("id", "source", "split", "text")]


def _row(source: str, text: str, copy: int) -> dict[str, str]:
    key = f"{identity(text)}-{copy}"
    return {"id": key, "source": source, "split": split_of(key, 0.01), "text": text}


def cpu_of(call: Callable[[], object]) -> float:
    """CPU seconds of this process, all threads, for one call."""
    began = time.process_time()
    call()
    return time.process_time() - began


def taking_turns(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, Any]:
    """CPU seconds of each call, in turns: the median, all of them, and each median over the first's."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            found[name].append(cpu_of(call))
    medians = {name: statistics.median(values) for name, values in found.items()}
    first = next(iter(medians))
    return {
        "cpu_s": {name: round(value, 3) for name, value in medians.items()},
        "all_cpu_s": {name: [round(value, 3) for value in values] for name, values in found.items()},
        f"over_{first}": {name: round(value / medians[first], 3) for name, value in medians.items() if name != first},
    }


def measure_train(rounds: int) -> dict[str, Any]:
    """Training on all real texts, once each."""
    texts = [text for _, text in real_texts()]

    def bare() -> None:
        tokenizer = tokenizers.Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=VOCABULARY - 6, initial_alphabet=alphabet, show_progress=False)
        tokenizer.train_from_iterator(texts, trainer)

    calls = {"bare_tokenizers": bare, "ours": lambda: bpe.train(texts, VOCABULARY, bpe.GPT2)}
    found = taking_turns(calls, rounds)
    return found | {"text_mb": round(sum(len(text.encode()) for text in texts) / 1e6, 1), "vocabulary": VOCABULARY}


def measure_encode(folder: Path, megabytes: int, rounds: int) -> dict[str, Any]:
    """One core beside bare tiktoken."""
    corpus, tokenizer = folder / "corpus", _own_tokenizer(folder)
    size = make_corpus(corpus, megabytes * 1_000_000)
    texts = pq.read_table(corpus / "documents.parquet", columns=["text"]).column("text").to_pylist()
    bare = tiktoken.Encoding(
        "bare", pat_str=tokenizer.pattern, mergeable_ranks=tokenizer.ranks, special_tokens=tokenizer.specials
    )
    plan = Plan((folder / "tokenizer", tokenizer.digest))

    def ours() -> None:
        for piece in slices(corpus / "documents.parquet"):
            encode_documents((piece, plan))

    calls = {
        "bare_tiktoken_to_numpy": lambda: [len(bare.encode_to_numpy(text, disallowed_special=())) for text in texts],
        "bare_tiktoken_plain": lambda: [len(bare.encode_ordinary(text)) for text in texts],
        "ours": ours,
    }
    found = taking_turns(calls, rounds)
    rates = {name: round(size / 1e6 / seconds, 2) for name, seconds in found["cpu_s"].items()}
    return {"text_mb": round(size / 1e6, 1), **found, "mb_per_cpu_s": rates}


def measure_workers(folder: Path, megabytes: int, rounds: int) -> dict[str, Any]:
    """The whole stage with a ready tokenizer: starting, reading, encoding, writing, SHA-256."""
    corpus = folder / "corpus"
    size = make_corpus(corpus, megabytes * 1_000_000)
    _own_tokenizer(folder)
    runs: dict[str, list[dict[str, Any]]] = {"1": [], "2": []}
    for _ in range(rounds):
        for workers, found in runs.items():
            found.append(run_stage(folder, corpus, {"workers": int(workers), **_folder_settings(folder)}))
    walls = {workers: statistics.median(run["wall_s"] for run in found) for workers, found in runs.items()}
    cpus = {workers: statistics.median(run["cpu_s"] for run in found) for workers, found in runs.items()}
    return {
        "text_mb": round(size / 1e6, 1),
        "runs": runs,
        "wall_of_1_over_wall_of_2": round(walls["1"] / walls["2"], 3),
        "cpu_of_2_over_cpu_of_1": round(cpus["2"] / cpus["1"], 3),
    }


def _own_tokenizer(folder: Path) -> Tokenizer:
    """A tokenizer of the real texts, kept in the folder."""
    if not (folder / "tokenizer").exists():
        bpe.train((text for _, text in real_texts()), VOCABULARY, bpe.GPT2).save(folder / "tokenizer")
    return Tokenizer.load(folder / "tokenizer")


def _folder_settings(folder: Path) -> dict[str, str]:
    return {"tokenizer": "folder", "tokenizer_folder": str(folder / "tokenizer")}


def run_stage(folder: Path, corpus: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The stage in a process of its own: wall and CPU seconds, high-water marks of it and of its workers."""
    script = folder / "stage.py"
    script.write_text(STAGE)
    command = [
        sys.executable,
        str(script),
        json.dumps(settings),
        str(corpus),
        str(folder / "shards"),
        str(folder / "s"),
    ]
    began = time.perf_counter()
    with subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}) as process:
        watch = _Watch(process.pid)
        code = process.wait()
        wall = time.perf_counter() - began
    if code:
        raise SystemExit(f"{' '.join(command)}: exit code {code}")
    parent, others = watch.end()
    return {
        "wall_s": round(wall, 2),
        "cpu_s": round(parent["cpu_s"] + sum(other["cpu_s"] for other in others), 2),
        "parent_peak_mb": parent["peak_mb"],
        "worker_peaks_mb": sorted(other["peak_mb"] for other in others),
    }


class _Watch:
    """Looks at a process and its descendants ten times a second until it ends."""

    def __init__(self, pid: int) -> None:
        self._root = psutil.Process(pid)
        self._found: dict[int, dict[str, float]] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while not self._over.wait(0.1):
            try:
                family = [self._root, *self._root.children(recursive=True)]
            except psutil.NoSuchProcess:
                return
            for process in family:
                self._note(process)

    def _note(self, process: psutil.Process) -> None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
            times = process.cpu_times()
        except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
            return
        if mark := re.search(r"VmHWM:\s+(\d+) kB", status):
            self._found[process.pid] = {
                "peak_mb": round(int(mark.group(1)) / 1024),
                "cpu_s": times.user + times.system,
            }

    def end(self) -> tuple[dict[str, float], list[dict[str, float]]]:
        """(of the process, of each descendant that used more than half a second)."""
        self._over.set()
        self._thread.join()
        found = dict(self._found)
        parent = found.pop(self._root.pid)
        return parent, [other for other in found.values() if other["cpu_s"] > 0.5]


def measure_check(folder: Path, megabytes: int) -> dict[str, Any]:
    """Opening shards of random ids, checked and unchecked, beside SHA-256 alone over the same files."""
    tokenizer, draw = _own_tokenizer(folder), np.random.default_rng(0)
    counts = {"documents": 0, "tokens": 0, "bytes": 0, "sources": {}, "mixture": {}}
    facts = {**describe(tokenizer), "splits": dict.fromkeys(SPLITS, counts)}
    with new_product(folder / "shards", "shards", facts) as product:
        tokenizer.save(product / "tokenizer")
        for split in SPLITS:
            writer = ShardWriter(product, split, facts["dtype"])
            for _ in range(megabytes if split == "train" else 0):
                ids = draw.integers(0, tokenizer.vocab_size, 500_000, dtype=np.uint16)
                writer.extend(ids, np.full(1_000, 500))
            writer.close()
            ShardWriter(product, f"dialogues-{split}", facts["dtype"], extra=("mask", "kinds")).close()
    files = sorted(path for path in (folder / "shards").rglob("*") if path.is_file())
    size = sum(path.stat().st_size for path in files)
    calls: dict[str, Callable[[], object]] = {
        "sha256_alone": lambda: [artifacts.sha256(path) for path in files],
        "checked": lambda: Shards.open(folder / "shards"),
        "unchecked": lambda: Shards.open(folder / "shards", verify=False),
    }
    found = taking_turns(calls, 5)
    rates = {name: round(size / 1e9 / found["cpu_s"][name], 3) for name in ("sha256_alone", "checked")}
    return {"shards_mb": round(size / 1e6, 1), **found, "gb_per_cpu_s": rates}


def measure_memory(folder: Path, sizes: list[int]) -> dict[str, Any]:
    """The whole stage, own tokenizer and all, with two workers."""
    found = {}
    for megabytes in sizes:
        size = make_corpus(folder / "corpus", megabytes * 1_000_000)
        run = run_stage(folder, folder / "corpus", {"workers": 2, "vocab_size": VOCABULARY})
        found[f"{size / 1e6:.0f} MB"] = run
    return found


def main() -> None:
    """Measure the parts asked for and save them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PARTS), help=f"some of {','.join(PARTS)}")
    parser.add_argument("--megabytes", type=int, default=100, help="text to encode, and shards to check")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sizes", default="100,1000", help="megabytes of text for memory")
    arguments = parser.parse_args()
    if not SHARED.is_dir():
        raise SystemExit(f"no texts at {SHARED}")
    folder = Path(tempfile.mkdtemp(prefix="groundup-tokenize-"))
    try:
        measures: dict[str, Callable[[], dict[str, Any]]] = {
            "train": lambda: measure_train(arguments.rounds),
            "encode": lambda: measure_encode(folder, arguments.megabytes, arguments.rounds),
            "workers": lambda: measure_workers(folder, arguments.megabytes, arguments.rounds),
            "check": lambda: measure_check(folder, arguments.megabytes),
            "memory": lambda: measure_memory(folder, [int(size) for size in arguments.sizes.split(",")]),
        }
        for part in arguments.only.split(","):
            about = where()
            found = {**measures[part](), "where": about}
            print(json.dumps({part: found}, indent=2))
            save("tokenize", {part: found})
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()

"""Multiple-choice scoring: our adapter against lm-evaluation-harness's Hugging Face adapter, same weights, same CPU.

    python -m benchmarks.evaluate [--data ../shared/data] [--rounds 3] [--documents 120] [--model small --model large]

The requests are those that the harness makes of its tasks; each adapter's own `loglikelihood` is timed, tokenisation
included. The peer runs at its best batch size, which is looked for first, task by task. Rounds alternate; the ratio is
the median of the rounds' ratios. Both must pick the same answers.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", TQDM_DISABLE="1", TOKENIZERS_PARALLELISM="false")

import torch

from benchmarks.measuring import ROOT, save, where
from llm_core.data.bpe import Tokenizer, train
from llm_core.evaluation import harness
from llm_core.evaluation.benchmarks import local
from llm_core.model.checkpoint import save_model
from llm_core.model.config import ModelConfig
from llm_core.model.transformer import Transformer

SETS = ROOT / "llm_core" / "evaluation" / "benchmarks" / "sets"
TASKS = (
    "local_hellaswag",
    "local_arc_easy",
    "local_piqa",
    "local_blimp",
    "local_winogrande",
    "local_boolq",
    "local_copa",
)
BATCH_SIZES = (4, 16, 64)
MODELS: dict[str, dict[str, int]] = {
    "small": {"vocab_size": 2048, "layers": 4, "heads": 4, "width": 128, "context": 256},
    "large": {"vocab_size": 16384, "layers": 8, "heads": 8, "width": 512, "context": 512},
}
LIMIT = 2.0


class Peer:
    """The harness's own adapter on the exported weights, at a batch size that can be set."""

    def __init__(self, folder: Path) -> None:
        from lm_eval.models.huggingface import HFLM
        from transformers import AutoModelForCausalLM, AutoTokenizer

        model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
        self.lm = HFLM(pretrained=model, tokenizer=tokenizer, device="cpu", batch_size=1)

    def loglikelihood(self, requests: list[Any], batch_size: int) -> list[tuple[float, bool]]:
        """Scores at this batch size."""
        self.lm.batch_size_per_gpu = batch_size
        found: list[tuple[float, bool]] = self.lm.loglikelihood(requests, disable_tqdm=True)
        return found


def requests_of(task: str, data: Path, documents: int, cache: Path) -> list[Any]:
    """The harness's requests for some documents of a task, a document's choices side by side."""
    _, manager = harness._lm_eval()
    config = local.configuration(task, SETS, data)
    config["dataset_kwargs"]["cache_dir"] = str(cache)
    (made,) = manager(include_defaults=False).load([config])["tasks"].values()
    made.set_config(key="num_fewshot", value=0)
    picked = harness.spread(len(made.eval_docs), documents)
    made.build_all_requests(samples=picked, rank=0, world_size=1)
    return list(made.instances)


def timed(call: Any) -> tuple[float, float, Any]:
    """(seconds, CPU seconds, result)."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = call()
    return time.perf_counter() - wall, time.process_time() - cpu, result


def picks(requests: list[Any], scores: list[tuple[float, bool]]) -> dict[int, int]:
    """The likeliest choice of each document."""
    best: dict[int, tuple[float, int]] = {}
    for request, (logprob, _) in zip(requests, scores, strict=True):
        best[request.doc_id] = max(best.get(request.doc_id, (float("-inf"), -1)), (logprob, request.idx))
    return {document: choice for document, (_, choice) in best.items()}


def race(ours: Any, peer: Peer, requests: list[Any], rounds: int) -> dict[str, Any]:
    """One task: the peer's batch sizes first, then both in turn."""
    tried = {size: timed(lambda size=size: peer.loglikelihood(requests, size))[0] for size in BATCH_SIZES}
    best = min(tried, key=lambda size: tried[size])
    mine, theirs = [], []
    ours.loglikelihood(requests)  # the peer is warm from the trials
    for _ in range(rounds):
        ours.encode.cache_clear()
        mine.append(timed(lambda: ours.loglikelihood(requests)))
        theirs.append(timed(lambda: peer.loglikelihood(requests, best)))
    documents = len({request.doc_id for request in requests})
    gap = max(abs(a[0] - b[0]) for a, b in zip(mine[-1][2], theirs[-1][2], strict=True))
    chosen, expected = picks(requests, mine[-1][2]), picks(requests, theirs[-1][2])
    return {
        "ratio": round(statistics.median(b[0] / a[0] for a, b in zip(mine, theirs, strict=True)), 2),
        "ratio_cpu_seconds": round(statistics.median(b[1] / a[1] for a, b in zip(mine, theirs, strict=True)), 2),
        "examples_per_second": round(documents / statistics.median(a[0] for a in mine), 1),
        "examples_per_second_peer": round(documents / statistics.median(b[0] for b in theirs), 1),
        "peer_batch_size": best,
        "peer_seconds_by_batch_size": {str(size): round(seconds, 2) for size, seconds in tried.items()},
        "documents": documents,
        "requests": len(requests),
        "same_picks": sum(chosen[d] == expected[d] for d in chosen) / len(chosen),
        "largest_difference_nats": gap,
    }


def measure(name: str, given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All tasks with one model."""
    shape = dict(MODELS[name])
    text = (given.data / "wikitext2" / "valid.txt").read_text()
    tokenizer: Tokenizer = train([text], shape.pop("vocab_size"))
    torch.manual_seed(0)
    model = Transformer(ModelConfig.preset("qwen3", vocab_size=tokenizer.vocab_size, **shape)).eval()
    with torch.no_grad():  # fresh residual outputs are zero: without these the model would look at nothing
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.05)
    (folder / name).mkdir()
    save_model(model, folder / name, tokenizer)
    ours, peer = harness.as_harness_model(model, tokenizer), Peer(folder / name)
    found: dict[str, Any] = {}
    for task in given.task or TASKS:
        found[task] = race(ours, peer, requests_of(task, given.data, given.documents, folder / "cache"), given.rounds)
        print(name, task, found[task]["ratio"], found[task]["ratio_cpu_seconds"], found[task], flush=True)
    ratios = [row["ratio"] for row in found.values()]
    summary = {"median_ratio": statistics.median(ratios), "smallest_ratio": min(ratios), "limit": LIMIT}
    facts = {"parameters": sum(p.numel() for p in model.parameters()), "threads": torch.get_num_threads()}
    return {**summary, "tasks": found, "model": {**MODELS[name], **facts}, "machine": where()}


def main() -> None:
    """Measure and lay the figures over the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--model", choices=MODELS, action="append")
    parser.add_argument("--task", choices=TASKS, action="append")
    parser.add_argument("--documents", type=int, default=120)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0, help="CPU threads of torch for both; 0: its own choice")
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as folder:
        for name in given.model or MODELS:
            save("evaluate", {name: measure(name, given, Path(folder))})


if __name__ == "__main__":
    main()

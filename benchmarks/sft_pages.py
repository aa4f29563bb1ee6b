"""What tuning forgets, and what pages among the dialogues and packing cost: the stage sft at several settings.

    python -m benchmarks.sft_pages --workspace DIR [--settings '{"page_share": 0.03, "packing": true}' ...]

DIR holds a finished run (models/base, data/shards). Each setting is run once a seed, in turn. Told are bits per byte of
all held-out pages beside the base model's, greedy accuracy on the held-out problems, the held-out losses, and CPU
seconds, which on a shared machine are fairer than seconds.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import measuring
from llm_core.data.shards import Shards
from llm_core.model.checkpoint import load_model
from llm_core.settings.sft import SftConfig
from llm_core.train import sft
from llm_core.train.heldout import bits_per_byte, document_nats
from llm_core.train.machine import prepare

SETTINGS = ('{"page_share": 0.0}', '{"packing": true}', '{"page_share": 0.03, "packing": true, "steps": 450}',
            '{"page_share": 0.06, "packing": true, "steps": 450}')  # fmt: skip


def main() -> None:
    """Measure and keep benchmarks/results/sft_pages.json."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--workspace", type=Path, default=measuring.ROOT)
    parser.add_argument("--settings", nargs="+", default=SETTINGS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--out", type=Path, default=measuring.RESULTS)
    options = parser.parse_args()
    base, shards = options.workspace / "models" / "base", options.workspace / "data" / "shards"
    lanes = prepare(options.threads, "cpu", lanes=2).lanes
    before = bits(base, shards, lanes)
    runs: dict[str, list[dict[str, float]]] = {text: [] for text in options.settings}
    for seed in range(1, options.seeds + 1):
        for text in options.settings:
            settings = json.loads(text) | {"seed": seed, "threads": options.threads}
            runs[text].append(one(settings, base, shards, lanes, before))
            print(text, seed, json.dumps(runs[text][-1]), flush=True)
    medians = {text: {k: statistics.median(run[k] for run in found) for k in found[0]} for text, found in runs.items()}
    facts: dict[str, Any] = {"where": measuring.where(), "base_bits_per_byte": before}
    print(measuring.save("sft_pages", facts | {"medians": medians, "runs": runs}, options.out))


def one(settings: dict[str, Any], base: Path, shards: Path, lanes: int, before: float) -> dict[str, float]:
    """One run of the stage."""
    with tempfile.TemporaryDirectory() as made:
        out, scratch = Path(made) / "chat", Path(made) / "scratch"
        scratch.mkdir()
        began = time.process_time()
        report = sft.run(
            SftConfig.model_validate(settings), base=base, shards=shards, out=out, scratch=scratch, emit=lambda _: None
        )
        spent = time.process_time() - began
        names = ("problem_accuracy", "problem_loss", "docstring_loss", "loss")
        found = {name: round(report.metrics[name], 4) for name in names if name in report.metrics}
        after = bits(out, shards, lanes)
        return found | {
            "bits_per_byte": round(after, 4), "times_base": round(after / before, 4), "cpu_seconds": round(spent, 1)
        }  # fmt: skip


def bits(folder: Path, shards: Path, lanes: int) -> float:
    """Bits per byte over all held-out pages."""
    model, data = load_model(folder), Shards.open(shards, verify=False)
    stream, offsets = data.tokens("validation"), data.offsets("validation")
    documents = [stream[start:stop] for start, stop in itertools.pairwise(offsets)]
    nats, _ = document_nats(model, documents, data.tokenizer.end_id, lanes=lanes)
    return bits_per_byte(nats, data.text_bytes("validation"))


if __name__ == "__main__":
    main()

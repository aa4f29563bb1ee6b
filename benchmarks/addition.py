"""Does reinforcement learning on a checked answer help? Three-digit addition alone, a model of 0.2 million parameters.

    python -m benchmarks.addition [--seeds 0 1 2] [--results FOLDER]

The answer is written least significant digit first. SFT is stopped on purpose at a sampled accuracy of about 44%; then
the stage align, GRPO on the checked answer (exact match, 1 or 0; no learned reward), on problems that SFT never saw.
Judged on 1,000 further problems: sampled accuracy over 8 answers to each, greedy accuracy and pass@8, with a paired 95%
interval over problems. One thread; about a minute and a half a seed on a quiet core.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as in the stages

import numpy as np
import torch

from benchmarks.measuring import RESULTS, save, where
from llm_core.artifacts import new_product
from llm_core.contract import Event
from llm_core.data import bpe
from llm_core.data.dialogue import encode, encode_prompt, stop_ids
from llm_core.feedback import align
from llm_core.feedback.preferences import Vote, write_votes
from llm_core.feedback.scorer import RewardModel, save_reward_model
from llm_core.model.checkpoint import load_model, save_model
from llm_core.model.config import ModelConfig
from llm_core.model.sampling import generate
from llm_core.model.transformer import Transformer
from llm_core.settings.align import AlignConfig
from llm_core.train.batches import TokenBatch, collate, next_token_loss
from llm_core.train.loop import LoopOptions, fit
from llm_core.train.optim import OptimizerOptions, make_optimizer

STOP_AT = 0.43
"""Sampled accuracy on 300 problems at which SFT ends; looked at every 5 steps, as it rises within a few dozen."""
JUDGED, SAMPLES = 1000, 8
SFT_BATCH, SFT_MOST, LOOK_FROM = 128, 1500, 150
SFT_OPTIMIZER = OptimizerOptions(
    name="muon", learning_rate=2e-3, embedding_learning_rate=0.01, matrix_learning_rate=0.01, weight_decay=0.0
)
GRPO = {
    "method": "grpo", "threads": 1, "max_new_tokens": 6, "kl_prompts": 100,
    "online": {
        "reward": "checked", "check": "exact", "rollouts": 200, "prompts": 32, "samples": 8, "learning_rate": 5e-4,
        "kl_weight": 0.02, "evaluate_every": 100, "missing_end_penalty": 0.0,
    },
    "grpo": {"variant": "grpo"},
}  # fmt: skip


class Enough(Exception):
    """SFT is where it should end."""


def problems(seed: int) -> dict[str, list[tuple[str, str]]]:
    """Disjoint problems as (question, answer) for SFT, feedback, when to stop, and judging."""
    pairs = np.random.default_rng(seed).permutation(1_000_000)[:40_000]
    rows = [(f"{a:03d}+{b:03d}", f"{a + b:04d}"[::-1]) for a, b in (divmod(int(pair), 1000) for pair in pairs)]
    return {"sft": rows[:30_000], "feedback": rows[30_000:38_000], "stop": rows[38_000:38_300],
            "judge": rows[39_000 : 39_000 + JUDGED]}  # fmt: skip


def answers(
    model: Transformer, tokenizer: bpe.Tokenizer, rows: list[tuple[str, str]], samples: int, temperature: float
) -> np.ndarray:
    """Which answers are right: (problems, samples)."""
    prompts = [encode_prompt([{"role": "user", "content": question}], tokenizer) for question, _ in rows]
    drawn = generate(model, prompts, max_new_tokens=6, samples=samples, temperature=temperature, seed=99,
                     stop_ids=stop_ids(tokenizer))  # fmt: skip
    right = [
        [tokenizer.decode([t for t in c.tokens if t not in stop_ids(tokenizer)]) == true for c in given]
        for given, (_, true) in zip(drawn, rows, strict=True)
    ]
    return np.array(right, dtype=float)


def tuned(seed: int, rows: dict[str, list[tuple[str, str]]], scratch: Path) -> tuple[Transformer, bpe.Tokenizer, int]:
    """A model that adds about right, its tokenizer of single bytes, and the steps it took."""
    tokenizer = bpe.train(["0123456789+"], 256 + len(bpe.SPECIALS))
    torch.manual_seed(seed)
    model = Transformer(
        ModelConfig.preset("qwen3", vocab_size=tokenizer.vocab_size, layers=2, heads=4, width=88, context=32)
    )
    encoded = []
    for question, answer in rows["sft"]:
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        encoded.append([np.array(part) for part in encode(turns, tokenizer)])
    steps = 0

    def batch(step: int) -> TokenBatch:
        chosen = np.random.default_rng([seed, step]).integers(len(encoded), size=SFT_BATCH)
        return collate([encoded[i][0] for i in chosen], [encoded[i][1] for i in chosen], 32)

    def look(trained: Transformer) -> dict[str, float]:
        nonlocal steps
        steps += 5
        if steps < LOOK_FROM:
            return {}
        share = float(answers(trained, tokenizer, rows["stop"], 1, 1.0).mean())
        if share >= STOP_AT:
            raise Enough
        return {"validation/right": share}

    with contextlib.suppress(Enough):
        fit(
            model, batch=batch, objective=next_token_loss, optimizer=make_optimizer(model, SFT_OPTIMIZER),
            schedule=lambda step: min(1.0, (step + 1) / 30),
            options=LoopOptions(SFT_MOST, seed=seed, evaluate_every=5),
            scratch=scratch, emit=tell, evaluate=look,
        )  # fmt: skip
    return model.eval(), tokenizer, steps


def products(folder: Path, model: Transformer, tokenizer: bpe.Tokenizer, rows: list[tuple[str, str]]) -> None:
    """What align needs: chat, prompts with their checks as votes, and a reward model that is not asked."""
    with new_product(folder / "chat", "chat") as path:
        save_model(model, path, tokenizer, "chat")
    with new_product(folder / "reward", "reward") as path:
        save_reward_model(RewardModel(model), path, tokenizer, "untrained")
    votes = [
        Vote(f"v{i:05d}", [{"role": "user", "content": question}], true, "", "a", "simulated", true, question,
             "validation" if i % 10 == 0 else "train")
        for i, (question, true) in enumerate(rows)
    ]  # fmt: skip
    with new_product(folder / "votes", "votes") as path:
        write_votes(path / "pairs.parquet", votes)


def interval(differences: np.ndarray, draws: int = 2000) -> list[float]:
    """95% interval of the mean of paired differences, by the bootstrap over problems."""
    random = np.random.default_rng(0)
    means = [differences[random.integers(len(differences), size=len(differences))].mean() for _ in range(draws)]
    return [round(float(value), 4) for value in np.quantile(means, [0.025, 0.975])]


def one(seed: int) -> dict[str, Any]:
    """One seed: SFT up to the stop, GRPO, both judged on the same problems with the same random numbers."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder, rows = Path(name), problems(seed)
        began = time.perf_counter()
        model, tokenizer, steps = tuned(seed, rows, folder / "sft")
        sft_seconds, began = time.perf_counter() - began, time.perf_counter()
        products(folder, model, tokenizer, rows["feedback"])
        (folder / "scratch").mkdir()
        report = align.run(
            AlignConfig.model_validate(GRPO | {"seed": seed}), chat=folder / "chat", reward=folder / "reward",
            votes=folder / "votes", out=folder / "aligned", scratch=folder / "scratch", emit=tell,
        )  # fmt: skip
        seconds = time.perf_counter() - began
        aligned = load_model(folder / "aligned")
    found: dict[str, Any] = {"seed": seed, "parameters": model.config.parameters(), "sft_steps": steps,
                             "sft_seconds": round(sft_seconds, 1), "align_seconds": round(seconds, 1),
                             "kl_nats": round(report.metrics["kl_from_chat"], 3)}  # fmt: skip
    before, after = (answers(m, tokenizer, rows["judge"], SAMPLES, 1.0) for m in (model, aligned))
    found |= {"sampled_before": before.mean(), "sampled_after": after.mean(), "gain": (after - before).mean()}
    found["gain_interval"] = interval((after - before).mean(axis=1))
    found |= {"pass_at_8_before": before.max(axis=1).mean(), "pass_at_8_after": after.max(axis=1).mean()}
    greedy = [float(answers(m, tokenizer, rows["judge"], 1, 0.0).mean()) for m in (model, aligned)]
    found |= {"greedy_before": greedy[0], "greedy_after": greedy[1]}
    return {
        key: round(float(value), 4) if isinstance(value, float | np.floating) else value for key, value in found.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    about, runs = where(), []
    for seed in given.seeds:
        runs.append(one(seed))
        print(runs[-1], flush=True)
    gains = [run["gain"] for run in runs]
    summary = {"gain_median": statistics.median(gains), "gain_least": min(gains), "gain_most": max(gains)}
    path = save("addition", {"grpo_on_checked_answers": {
        "where": about, "settings": GRPO, "judged": {"problems": JUDGED, "samples": SAMPLES}, "runs": runs, **summary,
    }}, given.results)  # fmt: skip
    print(summary, path)


def tell(event: Event) -> None:
    """The looks at held-out problems on the way."""
    values = getattr(event, "values", {})
    if "validation/right" in values:
        print({name: round(value, 3) for name, value in values.items()}, flush=True)


if __name__ == "__main__":
    main()

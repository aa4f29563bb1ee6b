"""The negative control: train on the learned reward with no pull towards chat until it is hacked. Does the gate refuse?

    python -m benchmarks.reward_hacking [--workspace DIR] [--rollouts 300] [--seed 0]

DIR is a workspace with finished products. The stage align runs GRPO on the reward model's score with KL coefficient 0
and a high learning rate, in stretches whose ends are kept; each stretch's model is judged by the checked answers of
held-out problems, which the reward never saw. Shown: the reward's own score goes up while the judge's score goes down
or the held-out pages become less likely, and what the gate says at each point, with sampled answers. Beside it the
same run with the default KL coefficient and learning rate.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

from benchmarks.judging import Judge, Products, scores_of
from benchmarks.measuring import RESULTS, ROOT, save, seconds_of, where
from llm_core.feedback.align import run as align
from llm_core.release.gate import decide
from llm_core.release.options import GateOptions
from llm_core.settings.align import AlignConfig

HACKED: dict[str, Any] = {"kl_weight": 0.0, "missing_end_penalty": 0.0, "learning_rate": 1e-3}
"""No KL, no penalty for answers without an end: nothing but the learned score."""
KEPT: dict[str, Any] = {}
"""The stage's defaults."""


def tuned(products: Products, online: dict[str, Any], rollouts: int, seed: int, folder: Path) -> tuple[Path, float]:
    """The model after so many rollouts, made once."""
    out, scratch = folder / "aligned", folder / "scratch"
    seconds = 0.0
    if not (out / "manifest.json").is_file():
        scratch.mkdir(parents=True, exist_ok=True)
        online = {"reward": "model", "evaluate_every": rollouts, "rollouts": rollouts} | online
        config = AlignConfig.model_validate({"method": "grpo", "seed": seed, "online": online})
        sources = {"chat": products.chat, "reward": products.reward, "votes": products.votes}
        seconds = seconds_of(lambda: align(config, **sources, out=out, scratch=scratch, emit=lambda _: None))
    return out, seconds


def point(found: dict[str, Any], chat: dict[str, Any]) -> dict[str, Any]:
    """What the reward says, what the judge says, and what the gate says."""
    verdict = decide(scores_of("aligned", found), scores_of("chat", chat), GateOptions.model_validate({}))
    return {
        "reward": found["reward"],
        "sampled_right": statistics.fmean(found["sampled"].values()),
        "greedy_right": statistics.fmean(found["greedy"].values()),
        "bits_per_byte": found["bits_per_byte"],
        "mean_length": found["mean_length"],
        "ended": found["ended"],
        "kl_from_chat": found["kl_from_chat"],
        "promoted": verdict.promoted,
        "failed": [check.name for check in verdict.checks if not check.passed],
        "verdict": verdict.reason,
        "samples": found["samples"],
    }


def main() -> None:
    """Train both ways, judge every stretch, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workspace", type=Path, default=ROOT, help="where the finished products stand")
    parser.add_argument("--work", type=Path, default=ROOT / ".groundup" / "benchmarks" / "reward_hacking")
    parser.add_argument("--rollouts", default="50,150,400", help="lengths of the runs, separated by commas")
    parser.add_argument("--problems", type=int, default=800)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    products = Products.of(arguments.workspace)
    judge = Judge(products, arguments.problems, answers=4)
    work = products.work(arguments.work, arguments.problems)
    chat = judge.remembered("chat", products.chat, work / "chat.json")
    result: dict[str, Any] = {"chat": point(chat, chat) | {"promoted": None, "failed": [], "verdict": ""}}
    lengths = [int(length) for length in arguments.rollouts.split(",")]
    runs = [("no_kl", HACKED, length) for length in lengths] + [("default", KEPT, lengths[-1])]
    for name, online, rollouts in runs:
        folder = work / f"{name}-{rollouts}-{arguments.seed}"
        model, seconds = tuned(products, online, rollouts, arguments.seed, folder)
        found = point(judge.remembered("aligned", model, folder / "figures.json"), chat)
        result[f"{name}_{rollouts}"] = found | {"rollouts": rollouts, "online": online, "align_seconds": seconds}
        before = result["chat"]
        print(
            f"{name} {rollouts}: reward {before['reward']:+.2f} -> {found['reward']:+.2f}, right "
            f"{before['sampled_right']:.3f} -> {found['sampled_right']:.3f}, bits per byte "
            f"{before['bits_per_byte']:.2f} -> {found['bits_per_byte']:.2f}, length {found['mean_length']:.1f}, "
            f"KL {found['kl_from_chat']:.1f}, promoted {found['promoted']} {found['failed']}",
            flush=True,
        )
        save("reward_hacking", {"where": where(), "seed": arguments.seed, "problems": len(judge.problems), **result},
             arguments.results)  # fmt: skip


if __name__ == "__main__":
    main()

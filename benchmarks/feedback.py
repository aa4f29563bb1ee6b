"""Does feedback make the model better? From chat to aligned on held-out problems, three methods, several seeds.

    python -m benchmarks.feedback [--workspace DIR] [--methods dpo,grpo_reward,grpo_checked] [--seeds 0,1,2]

DIR is a workspace with finished products (`groundup run`, or `groundup run --preset showcase` and then runs/NAME);
chat, votes, reward, corpus and shards are read there, only align and the judging are repeated for each seed. Align is
the stage itself, with the workspace's own settings but for what makes the method. What was done is kept in --work, so
a run that was killed goes on, and seeds can be added later. Asked for: sampled accuracy at least +6 points, the paired
95% interval above 0, greedy accuracy not lower, mean length within 1.25x, bits per byte on held-out pages at most 1.1x;
pass@8 stands beside them.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.judging import Judge, Products, scores_of
from benchmarks.measuring import RESULTS, ROOT, save, seconds_of, where
from llm_core.artifacts import dump_json, write_atomic
from llm_core.feedback.align import run as align
from llm_core.feedback.preferences import text_id
from llm_core.feedback.statistics import paired_difference
from llm_core.release.gate import decide
from llm_core.release.options import GateOptions
from llm_core.settings.align import AlignConfig
from tasks.params import overlay
from tasks.workspace import Workspace

METHODS: dict[str, dict[str, Any]] = {
    "dpo": {"method": "dpo"},
    "grpo_reward": {"method": "grpo", "online": {"reward": "model"}},
    "grpo_checked": {"method": "grpo", "online": {"reward": "checked", "kl_weight": 0.02}},
}
"""What differs from the workspace's settings of align. A checked answer cannot be cheated, so little holds it back."""
GAIN, LENGTH, BITS = 0.06, 1.25, 1.1
FIGURES = ("sampled", "greedy", "pass_at_8")


def settings_of(workspace: Path, methods: Sequence[str]) -> dict[str, dict[str, Any]]:
    """By method, the settings of the stage align: the workspace's own, what makes the method laid over them."""
    own = Workspace.at(workspace).params.get("align") or {}
    return {method: overlay(own, METHODS[method]) for method in methods}


def tune(products: Products, method: str, seed: int, folder: Path, settings: dict[str, Any]) -> tuple[Path, float]:
    """The aligned model of one method, seed and settings, and the seconds that align took; made once."""
    place = folder / f"{method}-{seed}-{text_id(json.dumps(settings, sort_keys=True))[:12]}"
    out, spent = place / "aligned", place / "seconds"
    if not (out / "manifest.json").is_file():
        scratch = place / "scratch"
        scratch.mkdir(parents=True, exist_ok=True)
        config = AlignConfig.model_validate(settings | {"seed": seed})
        sources = {"chat": products.chat, "reward": products.reward, "votes": products.votes}
        seconds = seconds_of(lambda: align(config, **sources, out=out, scratch=scratch, emit=lambda _: None))
        write_atomic(spent, dump_json(seconds))
    return out, float(spent.read_text()) if spent.is_file() else float("nan")


def compare(found: dict[str, Any], chat: dict[str, Any]) -> dict[str, Any]:
    """One model beside chat: paired differences with 95% intervals, ratios, the gate's word, and what was asked for."""
    gains = {}
    for name in FIGURES:
        prompts = sorted(chat[name])
        pair = [[model[name][prompt] for prompt in prompts] for model in (found, chat)]
        gains[name] = paired_difference(pair[0], pair[1]).as_dict() | {
            "from": statistics.fmean(pair[1]),
            "to": statistics.fmean(pair[0]),
        }
    length, bits = found["mean_length"] / chat["mean_length"], found["bits_per_byte"] / chat["bits_per_byte"]
    verdict = decide(scores_of("aligned", found), scores_of("chat", chat), GateOptions.model_validate({}))
    kept = {
        f"sampled_at_least_{GAIN}": gains["sampled"]["value"] >= GAIN,
        "sampled_interval_above_0": gains["sampled"]["low"] > 0,
        "greedy_not_lower": gains["greedy"]["value"] >= 0,
        "length": length <= LENGTH,
        "bits_per_byte": bits <= BITS,
    }
    return {
        "gains": gains,
        "length_ratio": length,
        "bits_per_byte_ratio": bits,
        "kl_from_chat": found["kl_from_chat"],
        "reward_gain": found["reward"] - chat["reward"],
        "promoted": verdict.promoted,
        "verdict": verdict.reason,
        "kept": kept,
    }


def spread(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Median, lowest and highest over the seeds."""

    def over(values: Sequence[float]) -> dict[str, float]:
        return {"median": statistics.median(values), "low": min(values), "high": max(values)}

    summary: dict[str, Any] = {f"{name}_gain": over([row["gains"][name]["value"] for row in rows]) for name in FIGURES}
    for name in ("length_ratio", "bits_per_byte_ratio", "kl_from_chat", "reward_gain", "align_seconds"):
        summary[name] = over([row[name] for row in rows])
    summary["seeds"] = len(rows)
    summary["promoted"] = sum(row["promoted"] for row in rows)
    summary["all_kept"] = sum(all(row["kept"].values()) for row in rows)
    return summary


def main() -> None:
    """Measure what was asked for, seed by seed, saving after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workspace", type=Path, default=ROOT, help="where the finished products stand")
    parser.add_argument("--work", type=Path, default=ROOT / ".groundup" / "benchmarks" / "feedback")
    parser.add_argument("--methods", default=",".join(METHODS), help="separated by commas")
    parser.add_argument("--seeds", default="0,1,2", help="separated by commas")
    parser.add_argument("--problems", type=int, default=10_000, help="held-out problems, at most")
    parser.add_argument("--name", default="default", help="the part of the JSON file, for example showcase")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON file")
    arguments = parser.parse_args()
    products = Products.of(arguments.workspace)
    judge = Judge(products, arguments.problems, answers=8)
    settings = settings_of(arguments.workspace, arguments.methods.split(","))
    work = products.work(arguments.work, arguments.problems)
    chat = judge.remembered("chat", products.chat, work / "chat.json")
    rows: dict[str, list[dict[str, Any]]] = {}
    for seed in map(int, arguments.seeds.split(",")):
        for method in settings:
            model, seconds = tune(products, method, seed, work, settings[method])
            found = judge.remembered("aligned", model, model.parent / "figures.json")
            row = compare(found, chat) | {"seed": seed, "align_seconds": seconds}
            rows.setdefault(method, []).append(row)
            gain = row["gains"]["sampled"]
            print(f"{method} seed {seed}: sampled {gain['from']:.3f} -> {gain['to']:.3f} [{gain['low']:+.3f}, "
                  f"{gain['high']:+.3f}], greedy {row['gains']['greedy']['value']:+.3f}, pass@8 "
                  f"{row['gains']['pass_at_8']['value']:+.3f}, length x{row['length_ratio']:.2f}, bits x"
                  f"{row['bits_per_byte_ratio']:.3f}, KL {row['kl_from_chat']:.2f}, {seconds:.0f} s, {row['kept']}",
                  flush=True)  # fmt: skip
            part = {
                "where": where(),
                "problems": len(judge.problems),
                "answers": judge.answers,
                "settings": settings,
                "summary": {name: spread(found) for name, found in rows.items()},
                "runs": rows,
                "samples": {
                    "prompts": [s["prompt"] for s in chat["samples"]],
                    "chat": [s["answer"] for s in chat["samples"]],
                },
            }
            save("feedback", {arguments.name: part}, arguments.results)


if __name__ == "__main__":
    main()

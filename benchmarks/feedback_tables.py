"""The tables of docs/feedback.md, from benchmarks/results/: what feedback gained, and how a cheated reward looks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmarks.measuring import results_of

NAMES = {"dpo": "DPO on the votes", "grpo_reward": "GRPO on the learned reward", "grpo_checked": "GRPO on the checked "
         "answer", "ppo": "PPO on the learned reward", "grpo": "GRPO on the learned reward"}  # fmt: skip
PRESETS = {"showcase": "`--preset showcase`", "default": "the embedded default"}


def table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, with an empty line before and after it."""
    lines = ["", row(heading), row(["---"] * len(heading)), *map(row, rows), ""]
    return "\n".join(lines)


def row(cells: Sequence[str]) -> str:
    """A line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def over(values: Mapping[str, float], form: str = "{:.2f}", times: float = 1.0) -> str:
    """Median and range over the seeds."""
    low, middle, high = (form.format(times * values[name]) for name in ("low", "median", "high"))
    return f"{middle} ({low} to {high})"


def gains(results: Path) -> str:
    """From chat to aligned on held-out problems, by preset and method."""
    found = results_of("feedback", results)
    text = ""
    for name, words in PRESETS.items():
        if name not in found:
            continue
        part = found[name]
        seeds = max(summary["seeds"] for summary in part["summary"].values())
        first = next(iter(part["runs"].values()))[0]["gains"]
        text += f"\nOn {words}, {part['problems']:,} held-out problems, {seeds} seeds. Chat before: "
        text += f"{first['sampled']['from']:.1%} of sampled and {first['greedy']['from']:.1%} of greedy answers right. "
        text += "Median and range over the seeds:\n"
        rows = []
        for method, summary in part["summary"].items():
            points = (over(summary[f"{figure}_gain"], "{:+.1f}", 100) for figure in ("sampled", "greedy", "pass_at_8"))
            ratios = (over(summary["length_ratio"], "x{:.2f}"), over(summary["bits_per_byte_ratio"], "x{:.3f}"))
            rows.append([NAMES[method], *points, *ratios, over(summary["kl_from_chat"])])
        head = ["", "sampled, points", "greedy, points", "pass@8, points", "length", "bits per byte", "KL, nats"]
        text += table(head, rows)
    return text


def sentiment(results: Path) -> str:
    """Film reviews: the independent judge before and after."""
    part = results_of("sentiment", results).get("methods")
    if not part:
        return ""
    summary = part["summary"]
    rows = [["chat", over(summary["chat"]["p_positive"]), "0", "x1", ""]]
    for method, found in summary.items():
        if method != "chat":
            kl, ended = over(found["kl_nats"], "{:.1f}"), over(found["ended"], "{:.0%}")
            ratio = over(found["perplexity_ratio"], "x{:.2f}")
            rows.append([NAMES[method], over(found["p_positive"]), kl, ratio, ended])
    head = ["", "P(positive), independent judge", "KL, nats an answer", "perplexity", "ended by itself"]
    return f"\n{len(part['runs'])} seeds, median and range:\n{table(head, rows)}"


def addition(results: Path) -> str:
    """Three-digit addition by GRPO on the checked answer."""
    part = results_of("addition", results).get("grpo_on_checked_answers")
    if not part:
        return ""
    shares = [f"{figure}_{when}" for figure in ("sampled", "greedy", "pass_at_8") for when in ("before", "after")]
    rows = [
        [str(run["seed"]), *(f"{run[share]:.1%}" for share in shares), f"{run['kl_nats']:.2f}"] for run in part["runs"]
    ]
    head = ["seed", "sampled before", "after", "greedy before", "after", "pass@8 before", "after", "KL, nats"]
    return table(head, rows)


def heads(results: Path) -> str:
    """HH-RLHF: held-out accuracy of the two heads beside simple baselines, and the sweep of their weights."""
    found = results_of("hh", results)
    if not found:
        return ""
    medians = found["held_out_accuracy_medians"]
    kinds = ("accuracy", "words_accuracy", "length_accuracy")
    first = table(
        ["set", "reward head", "word counts", "length alone", "held-out pairs"],
        [[name, *(f"{part[kind]:.1%}" for kind in kinds), f"{part['held_out']:.0f}"] for name, part in medians.items()],
    )
    sweep = table(
        ["weight of the harmless head", "helpful judge", "harmless judge", "tokens"],
        [
            [f"{step['harmless_weight']:.2f}"]
            + [f"{step[f'{kind}_judge']:+.2f} ({step[f'{kind}_low']:+.2f} to {step[f'{kind}_high']:+.2f})"
               for kind in ("helpful", "harmless")]
            + [f"{step['tokens']:.1f}"]
            for step in found["sweep_medians"]
        ],
    )  # fmt: skip
    return f"{first}\nThe answer taken is the best of {found['settings']['best_of']} by the mixed reward:\n{sweep}"


def hacking(results: Path) -> str:
    """The negative control: figures after each stretch, the gate's words, and answers beside chat's."""
    found = results_of("reward_hacking", results)
    if not found:
        return ""
    names = [name for name in found if name == "chat" or name.startswith(("no_kl_", "default_"))]
    names.sort(key=lambda name: (name != "chat", name.startswith("default"), found[name].get("rollouts", 0)))
    told = {name: f"{'KL weight 0' if name.startswith('no_kl') else 'default'}, {found[name].get('rollouts')} rollouts"
            for name in names} | {"chat": "chat"}  # fmt: skip
    rows = []
    for name in names:
        part = found[name]
        shares = (f"{part[share]:.1%}" for share in ("sampled_right", "greedy_right"))
        gate = {None: "", True: "promoted", False: f"refused: {', '.join(part['failed'])}"}[part["promoted"]]
        bits, kl = f"{part['bits_per_byte']:.3f}", f"{part['kl_from_chat']:.2f}"
        rows.append([told[name], f"{part['reward']:+.2f}", *shares, bits, kl, gate])
    head = ["", "reward", "right, sampled", "right, greedy", "bits per byte", "KL, nats", "gate"]
    text = table(head, rows)
    hacked = [name for name in names if name.startswith("no_kl")][-1:]
    for name in hacked:
        text += f"\nThe gate on {told[name]}: {found[name]['verdict']}.\n"
        both = zip(found["chat"]["samples"], found[name]["samples"], strict=True)
        rows = [[_plain(a["prompt"]), _plain(a["answer"]), _plain(b["answer"])] for a, b in both]
        text += table(["asked", "chat", told[name]], rows)
    return text


def _plain(text: str) -> str:
    """A model's words as one cell of a table, nothing of it as Markdown or HTML."""
    safe = " ".join(text.split()).replace("`", "'").replace("|", "/")
    return f"`{safe}`" if safe else "(nothing)"


PLACES: Mapping[str, Callable[[Path], str]] = {
    "gains": gains,
    "sentiment": sentiment,
    "addition": addition,
    "heads": heads,
    "hacking": hacking,
}

"""The figures in README.md, made from benchmarks/results/: `python -m benchmarks.readme` writes, --check compares."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from benchmarks.measuring import RESULTS, ROOT

START, END = "<!-- figures: made by python -m benchmarks.readme -->", "<!-- end of figures -->"


def figures(results: Path = RESULTS) -> str:
    """What the main job cost and reached when it was last measured, as Markdown; empty before that."""
    path = results / "main_job.json"
    measured: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    if "job" not in measured:
        return ""
    job = measured["job"]
    place = job["where"]
    model = job["evaluate"]
    minutes, seconds = divmod(round(job["wall_s"]), 60)
    rows = [
        (
            "`groundup run` from nothing",
            f"{minutes} min {seconds} s, {job['around_stages_s']:.0f} s of it around stages",
        ),
        ("largest process", f"{max(job['peak_rss_mb'].values()):,.0f} MB"),
        ("base, held-out pages", f"{job['bits_per_byte']:.3f} bits per byte"),
        ("chat, held-out problems, greedy", f"{model['chat_greedy_accuracy']:.1%} right"),
        ("aligned, held-out problems, greedy", f"{model['aligned_greedy_accuracy']:.1%} right"),
        ("chat, true answer of four (chance 25%)", f"{model['chat_choice_accuracy']:.1%}"),
    ]
    if "noop" in measured:
        rows.append(("`groundup run` with nothing to do", f"{measured['noop']['median_s']:.1f} s"))
    if "help" in measured:
        rows.append(("`groundup --help`", f"{measured['help']['median_s']:.2f} s"))
    load = f"load average {place['load_average'][0]} before and {job['load_average_after'][0]} after"
    heading = (
        f"Measured by `python -m benchmarks.main_job` on {place['device']} ({load}), commit {place['commit'][:10]}:"
    )
    return "\n".join(["", heading, "", "| | |", "| --- | --- |", *(f"| {what} | {text} |" for what, text in rows), ""])


def with_figures(text: str, results: Path = RESULTS) -> str:
    """README text with the figures between their two markers."""
    pattern = re.compile(re.escape(START) + ".*?" + re.escape(END), re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"README.md lacks the markers {START} and {END}")
    return pattern.sub(lambda _: f"{START}\n{figures(results)}{END}", text)


def main(arguments: list[str]) -> int:
    """Write or check README.md."""
    path = ROOT / "README.md"
    text = path.read_text()
    wanted = with_figures(text)
    if "--check" in arguments:
        if text == wanted:
            return 0
        print("README.md's figures are out of date; mend them with: python -m benchmarks.readme", file=sys.stderr)
        return 1
    path.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

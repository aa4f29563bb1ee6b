"""What README.md tells of a measured run, from benchmarks/results/main_job.json: what it printed, and the figures.

`python -m benchmarks.readme` writes it between its markers, `--check` only compares. Before a run was measured the
places between the markers are empty.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from benchmarks.measuring import RESULTS, ROOT

MARK = "<!-- {}: made by python -m benchmarks.readme -->"
END = "<!-- end of {} -->"


def measured(results: Path) -> dict[str, Any]:
    """The parts of the main job that have been measured."""
    path = results / "main_job.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    return found


def printed(parts: dict[str, Any]) -> str:
    """What `groundup run` printed at its end."""
    if "job" not in parts:
        return ""
    return "\n".join(["", "A run ends like this:", "", "```text", *parts["job"]["printed"], "```", ""])


def figures(parts: dict[str, Any]) -> str:
    """What the main job cost and reached, as a table."""
    if "job" not in parts:
        return ""
    job = parts["job"]
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
    if "noop" in parts:
        rows.append(("`groundup run` with nothing to do", f"{parts['noop']['median_s']:.1f} s"))
    if "help" in parts:
        rows.append(("`groundup --help`", f"{parts['help']['median_s']:.2f} s"))
    load = f"load average {place['load_average'][0]} before and {job['load_average_after'][0]} after"
    heading = (
        f"Measured by `python -m benchmarks.main_job` on {place['device']} ({load}), commit {place['commit'][:10]}:"
    )
    return "\n".join(["", heading, "", "| | |", "| --- | --- |", *(f"| {what} | {text} |" for what, text in rows), ""])


PLACES = {"printed": printed, "figures": figures}


def filled(text: str, parts: dict[str, Any]) -> str:
    """README text with what was measured between the markers."""
    for name, make in PLACES.items():
        start, end = MARK.format(name), END.format(name)
        pattern = re.compile(re.escape(start) + ".*?" + re.escape(end), re.DOTALL)
        if not pattern.search(text):
            raise ValueError(f"README.md lacks the markers {start} and {end}")
        between = make(parts)
        text = pattern.sub(lambda _, new=f"{start}\n{between}{end}": new, text)
    return text


def main(arguments: list[str]) -> int:
    """Write or check README.md."""
    path = ROOT / "README.md"
    text = path.read_text()
    wanted = filled(text, measured(RESULTS))
    if "--check" in arguments:
        if text == wanted:
            return 0
        print("README.md's figures are out of date; mend them with: python -m benchmarks.readme", file=sys.stderr)
        return 1
    path.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""What README.md and chapters of docs/ tell of what was measured, from benchmarks/results/.

`python -m benchmarks.readme` writes it between its markers, `--check` only compares. What was not measured leaves the
place between its markers empty.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks import feedback_tables
from benchmarks.measuring import RESULTS, ROOT, results_of

MARK = "<!-- {}: made by python -m benchmarks.readme -->"
END = "<!-- end of {} -->"


Makers = Mapping[str, Callable[[Path], str]]
"""By the name of a place: what stands there, from the folder of results."""


def printed(results: Path) -> str:
    """What `groundup run` printed at its end."""
    parts = results_of("main_job", results)
    if "job" not in parts:
        return ""
    return "\n".join(["", "A run ends like this:", "", "```text", *parts["job"]["printed"], "```", ""])


def figures(results: Path) -> str:
    """What the main job cost and reached, as a table."""
    parts = results_of("main_job", results)
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


PAGES: Mapping[str, Makers] = {
    "README.md": {"printed": printed, "figures": figures},
    "docs/feedback.md": feedback_tables.PLACES,
}


def filled(text: str, places: Makers, results: Path) -> str:
    """A page's text with what was measured between the markers. Raises `ValueError` if it lacks a place's markers."""
    for name, make in places.items():
        start, end = MARK.format(name), END.format(name)
        pattern = re.compile(re.escape(start) + ".*?" + re.escape(end), re.DOTALL)
        if not pattern.search(text):
            raise ValueError(f"the markers {start} and {end} are missing")
        between = make(results)
        text = pattern.sub(lambda _, new=f"{start}\n{between}{end}": new, text)
    return text


def main(arguments: list[str]) -> int:
    """Write or check the pages."""
    code = 0
    for page, places in PAGES.items():
        text = (ROOT / page).read_text()
        wanted = filled(text, places, RESULTS)
        if "--check" not in arguments:
            (ROOT / page).write_text(wanted)
        elif text != wanted:
            print(f"{page}'s figures are out of date; mend them with: python -m benchmarks.readme", file=sys.stderr)
            code = 1
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

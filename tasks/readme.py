"""The stage table in README.md, made from the table. `python -m tasks.readme` writes it; --check only compares."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from llm_core.pipeline import PIPELINE, product_path

START, END = "<!-- stages: made by python -m tasks.readme -->", "<!-- end of stages -->"


def table() -> str:
    """The stage table as Markdown."""
    lines = ["| stage | needs | makes | what it does | settings |", "| --- | --- | --- | --- | --- |"]
    for row in PIPELINE:
        needs = ", ".join([*row.needs, *row.files.values()]) or "-"
        settings = f"[`llm_core/settings/{row.verb}.py`](llm_core/settings/{row.verb}.py)"
        lines.append(f"| `{row.verb}` | {needs} | `{product_path(row.makes)}` | {row.what} | {settings} |")
    return "\n".join(lines)


def with_table(text: str) -> str:
    """README text with the table between its two markers."""
    pattern = re.compile(re.escape(START) + ".*?" + re.escape(END), re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"README.md lacks the markers {START} and {END}")
    return pattern.sub(lambda _: f"{START}\n{table()}\n{END}", text)


def main(arguments: list[str]) -> int:
    """Write or check README.md in the current directory."""
    path = Path("README.md")
    text = path.read_text()
    wanted = with_table(text)
    if "--check" in arguments:
        if text == wanted:
            return 0
        print("README.md's stage table is out of date; mend it with: python -m tasks.readme", file=sys.stderr)
        return 1
    path.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

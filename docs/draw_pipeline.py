"""docs/pipeline.svg, drawn from the stage table: `python docs/draw_pipeline.py` writes it, --check only compares."""

from __future__ import annotations

import sys
from pathlib import Path

from llm_core.pipeline import MODELS, PIPELINE

FILE = Path(__file__).with_name("pipeline.svg")
STEP, WIDTH, TOP, BOX, MARGIN = 94, 76, 46, 40, 12
STYLE = """
text { font: 13px system-ui, sans-serif; fill: #1d2430; text-anchor: middle }
.verb { font-size: 12px; fill: #5d6675 } .note { font-size: 12px; fill: #5d6675; text-anchor: start }
rect { fill: #e6eefc; stroke: #2456c9; stroke-width: 1.5 } .model { fill: #fdf0dd; stroke: #c76a06 }
.alias { fill: #e2f4ec; stroke: #13795b } path { fill: none; stroke: #8a94a3; stroke-width: 1.5 }
.arrow { fill: #8a94a3; stroke: none }
@media (prefers-color-scheme: dark) {
  text { fill: #e6e9ee } .verb, .note { fill: #9aa4b2 }
  rect { fill: #1d2b47 } .model { fill: #40290c } .alias { fill: #10372a }
}
"""


def draw() -> str:
    """The picture: a box a product, the verb that makes it above, a line for each product it is made from."""
    columns = {row.makes: index for index, row in enumerate(PIPELINE)} | {"champion": len(PIPELINE)}
    lines: list[str] = []
    for row in PIPELINE:
        lines += [_line(columns[need], columns[row.makes]) for need in row.needs]
    lines.append(_line(columns["scores"], columns["champion"]))
    boxes = [_box(columns[row.makes], row.verb, row.makes, "model" if row.makes in MODELS else "") for row in PIPELINE]
    boxes.append(_box(columns["champion"], "promote", "champion", "alias"))
    deepest = max(columns[row.makes] - columns[need] for row in PIPELINE for need in row.needs)
    height = TOP + BOX + 34 + 17 * deepest
    note = (
        f'<text class="note" x="{MARGIN}" y="{height - 10}">Blue: data. Orange: models. Green: the model that the gate '
        "let through. Prefect runs the chain, MLflow records each stage, DVC decides what is stale.</text>"
    )
    width = STEP * len(columns) - (STEP - WIDTH) + 2 * MARGIN
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="The pipeline: {", ".join([*(row.verb for row in PIPELINE), "promote"])}">\n'
        f"<style>{STYLE}</style>\n" + "\n".join([*lines, *boxes, note]) + "\n</svg>\n"
    )


def _x(column: int) -> float:
    return MARGIN + STEP * column + WIDTH / 2


def _box(column: int, verb: str, product: str, kind: str) -> str:
    x = _x(column)
    return (
        f'<text class="verb" x="{x}" y="{TOP - 12}">{verb}</text>'
        f'<rect class="{kind}" x="{x - WIDTH / 2}" y="{TOP}" width="{WIDTH}" height="{BOX}" rx="7" />'
        f'<text x="{x}" y="{TOP + BOX / 2 + 5}">{product}</text>'
    )


def _line(start: int, end: int) -> str:
    """A straight arrow to the neighbour; below the boxes, a curve that is deeper the further it goes."""
    if end == start + 1:
        left, right, y = _x(start) + WIDTH / 2, _x(end) - WIDTH / 2, TOP + BOX / 2
        arrow = f'<path class="arrow" d="M{right} {y} l-7 -4 v8 z" />'
        return f'<path d="M{left} {y} H{right - 4}" />{arrow}'
    foot, depth = TOP + BOX, 17 * (end - start) + 14
    left, right = _x(start) + 10, _x(end) - 22 + 4 * (end - start)
    arrow = f'<path class="arrow" d="M{right} {foot} l-4 7 h8 z" />'
    return f'<path d="M{left} {foot} C{left} {foot + depth} {right} {foot + depth} {right} {foot + 5}" />{arrow}'


def main(arguments: list[str]) -> int:
    """Write or check the picture."""
    if "--check" not in arguments:
        FILE.write_text(draw())
    elif not FILE.is_file() or FILE.read_text() != draw():
        print("docs/pipeline.svg is out of date; mend it with: python docs/draw_pipeline.py", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Model card and data card in Markdown, from facts alone: learned from what, how, what came out, what it is not for.

The headings follow the usual model card (Mitchell et al. 2019, arXiv:1810.03993) and data sheet (Gebru et al. 2021,
arXiv:1803.09010), kept to what a run knows by itself. A card holds no clock: the same facts give the same text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

Cell = str | int | float | bool | None
Table = Sequence[Mapping[str, Cell]]
Curve = Sequence[Sequence[float]]
BARS = "▁▂▃▄▅▆▇█"
CURVE_WIDTH = 40
_LEADING = re.compile(r"^([#+*=~_-])(?=[\s#+*=~_-]|$)")
_NUMBERED = re.compile(r"^(\d+)([.)])(?=\s|$)")
_MARKS = re.compile(r"[\\`\[\]]")
NAMES_FIRST = ("check", "figure", "curve", "source", "what", "split", "rater")
"""Columns that stand before all others."""


@dataclass(frozen=True)
class ModelFacts:
    """What a model card tells; empty facts are left out. Mappings are printed in their own order."""

    name: str
    summary: str
    sources: Table = ()
    settings: Mapping[str, Mapping[str, Cell]] = field(default_factory=dict)
    """Settings by stage."""
    curves: Mapping[str, Curve] = field(default_factory=dict)
    """(step, value) pairs by name."""
    results: Table = ()
    """Figures with `low` and `high` where there is an interval."""
    checks: Table = ()
    """The gate's figures beside their limits."""
    verdict: str = ""
    feedback: Table = ()
    feedback_text: str = ""
    limits: Sequence[str] = ()
    lineage: Mapping[str, str] = field(default_factory=dict)
    """Digest by product, so that the card names exactly what the model was made from."""


@dataclass(frozen=True)
class DataFacts:
    """What a data card tells; empty facts are left out."""

    name: str
    summary: str
    sources: Table = ()
    kept: Table = ()
    drops: Table = ()
    outcomes: Table = ()
    masked: Table = ()
    splits: Table = ()
    mixture: Table = ()
    steps: Sequence[str] = ()
    limits: Sequence[str] = ()
    lineage: Mapping[str, str] = field(default_factory=dict)


def render_card(facts: ModelFacts) -> str:
    """The model card with a final newline."""
    settings = [(stage, name, value) for stage, values in facts.settings.items() for name, value in values.items()]
    return _join(
        f"# {markdown(facts.name)}\n\n{markdown(facts.summary)}",
        _section("Data", table(facts.sources)),
        _section("Training", _rows(("stage", "setting", "value"), settings)),
        _section("Curves", _curves(facts.curves)),
        _section("Results", table(facts.results)),
        _section("Gate", markdown(facts.verdict), table(facts.checks)),
        _section("Feedback", markdown(facts.feedback_text), table(facts.feedback)),
        _section("Limits", _list(facts.limits)),
        _section("Made from", _rows(("product", "SHA-256 of its manifest"), list(facts.lineage.items()))),
    )


def render_data_card(facts: DataFacts) -> str:
    """The data card with a final newline."""
    return _join(
        f"# {markdown(facts.name)}\n\n{markdown(facts.summary)}",
        _section("Sources", table(facts.sources)),
        _section("What was asked of the web", table(facts.outcomes)),
        _section("Preparation", _list(facts.steps)),
        _section("Kept", table(facts.kept)),
        _section("Dropped, by reason", table(facts.drops)),
        _section("Personal data masked", table(facts.masked)),
        _section("Splits", table(facts.splits)),
        _section("Mixture of the training text", table(facts.mixture)),
        _section("Limits", _list(facts.limits)),
        _section("Made from", _rows(("product", "SHA-256 of its manifest"), list(facts.lineage.items()))),
    )


def sparkline(values: Sequence[float], width: int = CURVE_WIDTH) -> str:
    """A curve as a line of bars: means of up to `width` stretches, the lowest and the highest bar its range."""
    stretches = min(width, len(values))
    edges = [round(i * len(values) / stretches) for i in range(stretches + 1)] if stretches else []
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]
    if not means:
        return ""
    low, spread = min(means), (max(means) - min(means)) or 1.0
    return "".join(BARS[min(len(BARS) - 1, int((mean - low) / spread * len(BARS)))] for mean in means)


def table(rows: Table) -> str:
    """Markdown of rows; columns stand in the order in which they first come, those that name the row before them."""
    found = dict.fromkeys(name for row in rows for name in row)
    columns = [name for name in NAMES_FIRST if name in found] + [name for name in found if name not in NAMES_FIRST]
    return _rows(columns, [[row.get(name) for name in columns] for row in rows])


def _curves(curves: Mapping[str, Curve]) -> str:
    rows: list[dict[str, Cell]] = [
        {"curve": name, "course": sparkline([value for _, value in points]), "first": float(points[0][1]),
         "last": float(points[-1][1]), "steps": int(points[-1][0])}
        for name, points in curves.items() if points
    ]  # fmt: skip
    return table(rows)


def _rows(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    if not rows:
        return ""
    lines = [columns, ["---"] * len(columns), *([_cell(value) for value in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def markdown(text: str) -> str:
    """Text of unknown origin as one line of Markdown that shows it as it is: no tag, link, image or code begins in it.

    Addresses are left as they are; what a reader's program makes of a bare one leads to where it says.
    """
    told = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _NUMBERED.sub(r"\1\\\2", _LEADING.sub(r"\\\1", _MARKS.sub(r"\\\g<0>", told)))


def _list(items: Sequence[str]) -> str:
    return "\n".join(f"- {markdown(item)}" for item in items)


def _section(title: str, *parts: str) -> str:
    told = [part for part in parts if part]
    return "\n\n".join([f"## {title}", *told]) if told else ""


def _join(*sections: str) -> str:
    return "\n\n".join(section for section in sections if section) + "\n"


def _cell(value: Cell) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if isinstance(value, float) else value
    return markdown(text).replace("|", "\\|")

"""How a report's tables and curves are shown: as intervals, as bars, as charts, or as a plain table.

What a stage may say is open, so the choice is made from the columns: a table with `value`, `low` and `high` is drawn as
dots with whiskers (a row without an interval is a trivial baseline); one with a name and a single number as bars; any
other as a table.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tasks import plots

Row = Mapping[str, Any]
CHART_WIDTH = 520
OPEN_CURVES = ("loss", "bits_per_byte", "accuracy")
NAMING = ("source", "task", "what", "model", "who", "rater", "kind", "licence", "split", "preference", "reason")
"""Columns that name a row, in the order in which they read best (reports hold them sorted by name)."""


@dataclass(frozen=True)
class Bar:
    """A labelled bar; `share` is its length, 0 to 1; `tone` colours it: "", "drop" or "kept"."""

    label: str
    text: str
    share: float
    tone: str = ""


@dataclass(frozen=True)
class Dot:
    """A value with its interval, placed on a scale from 0 to 1."""

    label: str
    text: str
    at: float
    low: float
    high: float
    baseline: bool


@dataclass(frozen=True)
class Scale:
    """Dots that share a scale, and the texts along it, evenly spaced."""

    title: str
    dots: tuple[Dot, ...]
    marks: tuple[str, ...]


@dataclass(frozen=True)
class View:
    """A table made ready: `kind` is "dots", "bars" or "table", and says which of the other fields is filled."""

    title: str
    kind: str
    scales: tuple[Scale, ...] = ()
    bars: tuple[Bar, ...] = ()
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()


def number(value: Any) -> str:
    """A value for people: 1,234,567; 0.4128; yes; an absent one is a dash."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        value = int(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.4g}" if isinstance(value, float) and abs(value) < 1000 else (
        f"{value:,.0f}" if isinstance(value, float) else str(value))  # fmt: skip


def words(name: str) -> str:
    """`bits_per_byte` as `bits per byte`."""
    return name.replace("_", " ")


def written(text: str) -> str:
    """A model's words as they are shown: without empty lines at the ends or in heaps; white space alone is named."""
    return re.sub(r"\n\s*\n\s*", "\n\n", text.strip()) or "(nothing but white space)"


def duration(seconds: float) -> str:
    """Seconds for people: 0.4 s, 12 s, 3 min 20 s, 2 h 5 min."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if minutes else f"{rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def view(title: str, table: Sequence[Row]) -> View:
    """The table in the form that its columns ask for."""
    columns = list(dict.fromkeys(column for row in table for column in row))
    if {"value", "low", "high"} <= set(columns) and all(_is_number(row.get("value")) for row in table):
        return View(title, "dots", scales=tuple(_scales(table)))
    texts = [c for c in columns if all(isinstance(row.get(c), str | None) for row in table)]
    texts.sort(key=lambda c: (NAMING.index(c) if c in NAMING else len(NAMING), c))
    numbers = [c for c in columns if c not in texts]
    if len(table) > 1 and texts and len(numbers) == 1 and _all_positive(row.get(numbers[0]) for row in table):
        labelled = [(" · ".join(row[c] for c in texts if row.get(c)), row[numbers[0]]) for row in table]
        return View(title, "bars", bars=bars(labelled))
    shown = [*texts, *numbers]
    cells = tuple(tuple(number(row.get(c)) for c in shown) for row in table)
    return View(title, "table", columns=tuple(map(words, shown)), rows=cells)


def _all_positive(values: Iterable[Any]) -> bool:
    return all(_is_number(value) and value >= 0 for value in values)


def bars(values: Sequence[tuple[str, float]], tones: Sequence[str] = ()) -> tuple[Bar, ...]:
    """Bars in the order given, the longest over the whole width."""
    top = max((value for _, value in values), default=0) or 1
    coloured = tones or [""] * len(values)
    return tuple(
        Bar(words(label), number(value), value / top, tone)
        for (label, value), tone in zip(values, coloured, strict=True)
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _scales(table: Sequence[Row]) -> list[Scale]:
    """One scale a task; one for all where no task has two rows."""
    grouped: dict[str, list[Row]] = {}
    for row in table:
        grouped.setdefault(words(str(row.get("task", ""))), []).append(row)
    if all(len(rows) == 1 for rows in grouped.values()):
        return [_scale("", table, "task")]
    return [_scale(title, rows) for title, rows in grouped.items()]


def _scale(title: str, rows: Sequence[Row], *named_by: str) -> Scale:
    """Shares are drawn from 0 to 100%, differences (`aligned - chat`) around a zero in the middle, others from 0."""
    ends = [row[part] for row in rows for part in ("value", "low", "high") if _is_number(row.get(part))]
    reach = max(abs(end) for end in ends) or 1.0
    is_share, is_difference = reach <= 1, min(ends) < 0 or any(" - " in str(row.get("who")) for row in rows)
    top = 1.1 * reach if is_difference or not is_share else 1.0
    floor = -top if is_difference else 0.0
    sign = "+" if is_difference else ""

    def text(value: float) -> str:
        return f"{value:{sign}.1%}" if is_share else f"{value:{sign},.4g}"

    def dot(row: Row) -> Dot:
        label = " · ".join(words(str(row[c])) for c in (*named_by, "who", "model", "source", "baseline") if row.get(c))
        bare = not _is_number(row.get("low")) or not _is_number(row.get("high"))
        low, high = (row["value"], row["value"]) if bare else (row["low"], row["high"])
        interval = "" if bare else f" [{text(low)}, {text(high)}]"
        count = row.get("prompts") or row.get("n")
        told = f"{text(row['value'])}{interval}" + (f", n {number(count)}" if count else "")
        at, left, right = ((value - floor) / (top - floor) for value in (row["value"], low, high))
        return Dot(label, told, at, left, right, bare or bool(row.get("baseline")))

    dots = tuple(sorted(map(dot, rows), key=lambda found: found.baseline))
    marks = (text(floor), "0", text(top)) if is_difference else ("0%", "100%") if is_share else ("0", text(top))
    return Scale(title, dots, marks)


def charts(stage: str, curves: Mapping[str, Sequence[plots.Point]]) -> tuple[list[str], list[str]]:
    """SVG charts of a stage: first those that everyone wants to see, then the rest.

    `train/x` and `validation/x` share a chart, and so do all losses.
    """
    grouped: dict[str, dict[str, Sequence[plots.Point]]] = {}
    for name, points in curves.items():
        what = name.rpartition("/")[2]
        if not name.startswith("final/"):
            grouped.setdefault("loss" if what.endswith("loss") else what, {})[name] = points
    first: list[str] = []
    rest: list[str] = []
    for what in sorted(grouped, key=lambda what: (not what.endswith(OPEN_CURVES), what != "loss", what)):
        chart = plots.line_chart(f"{stage}: {words(what)}", grouped[what], width=CHART_WIDTH)
        (first if what.endswith(OPEN_CURVES) else rest).append(chart)
    return [chart for chart in first if chart], [chart for chart in rest if chart]

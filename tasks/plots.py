"""Charts as SVG text, and the files that a run leaves in MLflow beside its figures."""

from __future__ import annotations

import html
import json
import math
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from llm_core import artifacts

Point = tuple[float, float]
WITH_LOSSES = ("pretrain", "sft", "reward", "align")
"""Stages that leave their loss curves beside their report, as `dvc plots` reads them."""
COLOURS = ("#2563eb", "#d97706", "#059669", "#dc2626", "#7c3aed", "#0891b2")
WIDTH, HEIGHT, LEFT, BOTTOM = 640, 260, 56, 34


def read_curves(metrics: Path, most: int = 300) -> dict[str, list[Point]]:
    """Curves of a metrics.jsonl, by name, thinned to at most about `most` points each; the last point is kept."""
    curves: dict[str, list[Point]] = {}
    for line in metrics.read_text().splitlines() if metrics.is_file() else []:
        row = json.loads(line)
        for name, value in row["values"].items():
            curves.setdefault(name, []).append((row["step"], value))
    return {name: _thin(points, most) for name, points in sorted(curves.items())}


def loss_rows(curves: Mapping[str, Sequence[Point]]) -> list[dict[str, float | None]]:
    """The loss curves as rows for `dvc plots`: `validation/loss` is the last one measured, None before the first."""
    measured = list(curves.get("validation/loss", []))
    rows: list[dict[str, float | None]] = []
    for step, loss in curves.get("train/loss", []):
        before = [value for at, value in measured if at <= step]
        rows.append({"step": step, "train/loss": loss, "validation/loss": before[-1] if before else None})
    return rows


def _thin(points: list[Point], most: int) -> list[Point]:
    stride = max(1, len(points) // most)
    return points[::stride] + ([points[-1]] if (len(points) - 1) % stride else [])


def line_chart(title: str, curves: Mapping[str, Sequence[Point]], x_label: str = "step", width: int = WIDTH) -> str:
    """An SVG line chart; a curve's name stands in the legend. A long, noisy curve is faint under its moving average.

    Colours are CSS variables with fallbacks, so that a page which holds the chart may set its own.
    """
    points = [point for curve in curves.values() for point in curve if math.isfinite(point[1])]
    if not points:
        return ""
    left, right = min(x for x, _ in points), max(x for x, _ in points)
    ticks = _ticks(min(y for _, y in points), max(y for _, y in points))
    places = _legend_places(curves, width)
    low, high, top, floor = ticks[0], ticks[-1], places[-1][1] + 15, HEIGHT - BOTTOM

    def place(point: Point) -> str:
        x = LEFT + (point[0] - left) / ((right - left) or 1.0) * (width - LEFT - 14)
        return f"{x:.1f},{top + (high - point[1]) / (high - low) * (floor - top):.1f}"

    body = [_text(8, 18, title, weight="600")]
    for tick in ticks:
        y = float(place((left, tick)).split(",")[1])
        body.append(f'<line x1="{LEFT}" x2="{width - 14}" y1="{y:.1f}" y2="{y:.1f}" stroke="#8884" />')
        body.append(_text(LEFT - 6, y + 4, f"{tick:,.6g}", anchor="end"))
    for share, anchor in ((0.0, "start"), (0.5, "middle"), (1.0, "end")):
        x = LEFT + share * (width - LEFT - 14)
        label = f"{left + share * (right - left):,.0f}"
        body.append(_text(x, floor + 18, f"{x_label} {label}" if share == 1 else label, anchor=anchor))
    for index, ((name, curve), (x, y)) in enumerate(zip(curves.items(), places, strict=True)):
        body.append(_curve([point for point in curve if math.isfinite(point[1])], place, _colour(index)))
        body.append(f'<rect x="{x:.1f}" y="{y - 2:.1f}" width="12" height="4" rx="2" fill="{_colour(index)}" />')
        body.append(_text(x + 17, y + 4, name))
    return _svg(HEIGHT - 8, body, width)


def _legend_places(names: Iterable[str], width: int) -> list[Point]:
    """Where each name of the legend stands; a row that is full goes on in the next."""
    places: list[Point] = []
    x, y = float(LEFT), 31.0
    for name in names:
        length = 36 + 6.6 * len(name)
        if x + length > width and places:
            x, y = float(LEFT), y + 16
        places.append((x, y))
        x += length
    return places


def _curve(curve: Sequence[Point], place: Callable[[Point], str], colour: str) -> str:
    def line(points: Sequence[Point], style: str) -> str:
        path = " ".join(place(point) for point in points)
        return f'<polyline points="{path}" fill="none" stroke="{colour}" {style} />'

    reach = len(curve) // 40
    if reach:
        reaches = [min(reach, i, len(curve) - 1 - i) for i in range(len(curve))]
        parts = [curve[i - r : i + r + 1] for i, r in enumerate(reaches)]
        smooth = [(curve[i][0], sum(y for _, y in part) / len(part)) for i, part in enumerate(parts)]
        return line(curve, 'stroke-width="1" opacity="0.35"') + line(smooth, 'stroke-width="2"')
    dotted = curve if len(curve) <= 12 else ()
    dots = "".join('<circle cx="{}" cy="{}" r="3" fill="{}" />'.format(*place(p).split(","), colour) for p in dotted)
    return line(curve, 'stroke-width="2"') + dots


def _ticks(low: float, high: float) -> list[float]:
    """Three to eight round numbers that enclose the range."""
    span = (high - low) or abs(high) or 1.0
    unit = 10.0 ** math.floor(math.log10(span / 4))
    step = next(unit * factor for factor in (1, 2, 5, 10) if span / (unit * factor) <= 5)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [index * step for index in range(first, max(last, first + 1) + 1)]


def _colour(index: int) -> str:
    return f"var(--series-{index % len(COLOURS)}, {COLOURS[index % len(COLOURS)]})"


def bar_chart(title: str, bars: Sequence[tuple[str, float]]) -> str:
    """An SVG chart of horizontal bars, each with its label and value."""
    top = max((value for _, value in bars), default=0.0) or 1.0
    body = [_text(8, 18, title, weight="600")]
    for index, (label, value) in enumerate(bars):
        y = 30 + 22 * index
        length = max(1.0, value / top * (WIDTH - 330))
        body.append(_text(222, y + 13, label, anchor="end"))
        body.append(f'<rect x="230" y="{y}" width="{length:.1f}" height="16" rx="2" fill="{COLOURS[0]}" />')
        body.append(_text(236 + length, y + 13, f"{value:,.4g}" if value < 1000 else f"{value:,.0f}"))
    return _svg(40 + 22 * len(bars), body)


def _text(x: float, y: float, text: str, *, anchor: str = "start", weight: str = "400", colour: str = "") -> str:
    fill = colour or "currentColor"
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}" fill="{fill}">'
        f"{html.escape(text)}</text>"
    )


def _svg(height: float, body: Sequence[str], width: int = WIDTH) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height:.0f}" role="img" '
        f'font-family="system-ui, sans-serif" font-size="12" color="#334155">{"".join(body)}</svg>'
    )


def write_artifacts(folder: Path, report: Mapping[str, Any], info: Mapping[str, Any], lock: Path) -> None:
    """Fill `folder` with what MLflow keeps of a run: report, tables, samples, plots, code diff, dvc.lock."""
    (folder / "plots").mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_bytes(artifacts.dump_json(report))
    (folder / "versions.json").write_bytes(artifacts.dump_json(info["versions"]))
    if info["code_diff"]:
        (folder / "code.diff").write_text(info["code_diff"])
    if lock.is_file():
        shutil.copyfile(lock, folder / "dvc.lock")
    for name, table in report["tables"].items():
        (folder / f"{name}.json").write_bytes(artifacts.dump_json(table))
    if report["samples"]:
        texts = ["\n".join(f"{key}: {text}" for key, text in sample.items()) for sample in report["samples"]]
        (folder / "samples.txt").write_text("\n\n".join(texts) + "\n")
    for name, points in report["curves"].items():
        chart = line_chart(name, {name: points})
        (folder / "plots" / f"{name.replace('/', '-')}.svg").write_text(chart)
    numbers = [(name, float(value)) for name, value in report["metrics"].items()]
    (folder / "plots" / "final.svg").write_text(bar_chart(report["stage"], numbers))

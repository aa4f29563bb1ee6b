"""Charts as SVG text, and the files that a run leaves in MLflow beside its figures."""

from __future__ import annotations

import html
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llm_core import artifacts

Point = tuple[float, float]
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


def _thin(points: list[Point], most: int) -> list[Point]:
    stride = max(1, len(points) // most)
    return points[::stride] + ([points[-1]] if (len(points) - 1) % stride else [])


def line_chart(title: str, curves: Mapping[str, Sequence[Point]], x_label: str = "step") -> str:
    """An SVG line chart; a curve's name stands in the legend."""
    points = [point for curve in curves.values() for point in curve]
    if not points:
        return ""
    left, right = min(x for x, _ in points), max(x for x, _ in points)
    low, high = min(y for _, y in points), max(y for _, y in points)
    x_span, y_span = (right - left) or 1.0, (high - low) or 1.0

    def place(point: Point) -> str:
        x = LEFT + (point[0] - left) / x_span * (WIDTH - LEFT - 12)
        y = 30 + (high - point[1]) / y_span * (HEIGHT - BOTTOM - 30)
        return f"{x:.1f},{y:.1f}"

    body = [_text(LEFT, 18, title, weight="600")]
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = 30 + share * (HEIGHT - BOTTOM - 30)
        body.append(f'<line x1="{LEFT}" x2="{WIDTH - 12}" y1="{y:.1f}" y2="{y:.1f}" stroke="#8884" />')
        body.append(_text(LEFT - 6, y + 4, f"{high - share * y_span:.3g}", anchor="end"))
    for share in (0.0, 0.5, 1.0):
        x = LEFT + share * (WIDTH - LEFT - 12)
        body.append(_text(x, HEIGHT - 14, f"{left + share * x_span:,.0f}", anchor="middle"))
    body.append(_text(WIDTH - 12, HEIGHT - 1, x_label, anchor="end"))
    for index, (name, curve) in enumerate(curves.items()):
        colour = COLOURS[index % len(COLOURS)]
        path = " ".join(place(point) for point in curve)
        body.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2" />')
        body.append(_text(WIDTH - 16, 44 + 16 * index, name, anchor="end", colour=colour))
    return _svg(HEIGHT, body)


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


def _svg(height: float, body: Sequence[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" role="img" '
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

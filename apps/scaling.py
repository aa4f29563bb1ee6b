"""reports/scaling.html: what a ladder of small runs taught, as one page without any outside file."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from apps import views
from llm_core import artifacts
from llm_core.scaling.fitting import growth
from llm_core.scaling.ladder import Study
from llm_core.scaling.laws import KAPLAN, PUBLISHED
from llm_core.scaling.planner import Plan, plan_rows
from llm_core.scaling.recipe import family
from tasks.plots import COLOURS, Point
from tasks.workspace import Workspace

TEMPLATE = "scaling.html.j2"
WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 560, 340, 62, 44, 30


@dataclass(frozen=True)
class Series:
    """Points of one name and colour, as dots, or joined by a line."""

    name: str
    points: Sequence[Point]
    colour: int
    line: bool = False


def write_study(space: Workspace, study: Study, plan: Plan | None = None) -> Path:
    """Write the page; its path."""
    path = space.report("scaling").with_suffix(".html")
    path.parent.mkdir(exist_ok=True)
    artifacts.write_atomic(path, render(space.name, study, plan).encode())
    return path


def render(name: str, study: Study, plan: Plan | None = None) -> str:
    """The page's HTML."""
    folder = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=folder, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters |= {"number": views.number, "words": views.words}
    law, runs = study.fit.law, study.rows()
    power = f"{law.E:.3f} + {law.A:.4g} / N^{law.alpha:.3f} + {law.B:.4g} / D^{law.beta:.3f}"
    return environment.get_template(TEMPLATE).render(
        name=name,
        formula=f"L(N, D) = {power}",
        rungs=len(study.ladder.rungs),
        tokens=max(run["tokens"] for run in runs),
        residual=f"{study.fit.residual:.2%}",
        check=f"A run at {study.ladder.held_out.flops / study.ladder.rungs[-1].flops:.1f} times the largest of these "
        f"budgets: predicted {study.predicted:.3f}, actual {study.actual:.3f} ({study.error:+.1%}).",
        charts=[Markup(chart) for chart in charts(study)],
        laws=law_rows(study),
        valleys=[
            {"FLOPs": v.flops, "best parameters": v.best_parameters, "best tokens": v.best_tokens, "loss": v.loss,
             "inside the ladder": v.inside}
            for v in study.valleys
        ],
        runs=runs,
        plan={"rows": plan_rows(plan), "notes": plan.notes} if plan else None,
    )  # fmt: skip


def law_rows(study: Study) -> list[dict[str, Any]]:
    """The own law and the published ones: exponents, and what each says of the held-out run."""
    shape, tokens = study.ladder.held_out.shape, study.ladder.held_out.tokens
    rows = []
    for law in (study.fit.law, *PUBLISHED):
        a, b = law.exponents
        loss = law.loss(shape.parameters(), tokens)
        rows.append({"law": law.name, "E": law.E, "alpha": law.alpha, "beta": law.beta, "a": a, "b": b,
                     "loss of the held-out run": loss, "source": law.source})  # fmt: skip
    for name in ("E", "alpha", "beta", "a", "b"):
        interval = study.fit.intervals[name]
        rows[0][name] = f"{interval.value:.3g} [{interval.low:.3g}, {interval.high:.3g}]"
    parabolas = growth(study.valleys)
    if parabolas:
        own = {
            "law": "own isoFLOP curves",
            "a": parabolas[0],
            "b": parabolas[1],
            "source": "lowest points of parabolas",
        }
        rows.insert(1, own)
    body = shape.parameters() - 2 * shape.vocab_size * shape.width
    rows.append({"law": KAPLAN.name, "a": 0.73, "b": 0.27, "source": KAPLAN.source,
                 "loss of the held-out run": KAPLAN.loss(body, tokens)})  # fmt: skip
    columns = ("law", "E", "alpha", "beta", "a", "b", "loss of the held-out run", "source")
    return [{column: row.get(column) for column in columns} for row in rows]


def charts(study: Study) -> list[str]:
    """SVG charts: isoFLOP curves, loss over compute, best size over compute."""
    return [_isoflops(study), _frontier(study), _sizes(study)]


def _isoflops(study: Study) -> str:
    series = []
    for index in sorted({rung.budget for rung in study.ladder.rungs}):
        rungs = [rung for rung in study.ladder.rungs if rung.budget == index]
        dots = [(float(rung.shape.parameters()), study.losses[rung.name]) for rung in rungs]
        law = [
            (float(rung.shape.parameters()), study.fit.law.loss(rung.shape.parameters(), rung.tokens)) for rung in rungs
        ]
        series += [Series(f"{rungs[0].flops:.1e} FLOPs", dots, index), Series("", law, index, line=True)]
    return chart("Loss over size at equal compute; lines: the law", "parameters", series)


def _frontier(study: Study) -> str:
    runs = [(rung.flops, study.losses[rung.name]) for rung in study.ladder.rungs]
    held_out = study.ladder.held_out
    low, high = min(flops for flops, _ in runs), 2 * held_out.flops
    law = study.fit.law
    sizes = list(family(held_out.shape.vocab_size, held_out.shape.context))
    best = [
        (flops, min(law.loss(shape.parameters(), flops / shape.flops_per_token()) for shape in sizes))
        for flops in _spaced(low, high)
    ]
    series = [
        Series("runs", runs, 0),
        Series("held out, actual", [(held_out.flops, study.actual)], 3),
        Series("held out, predicted", [(held_out.flops, study.predicted)], 1),
        Series("law at its best size", best, 2, line=True),
    ]
    return chart("Loss over compute", "FLOPs", series)


def _sizes(study: Study) -> str:
    held_out = study.ladder.held_out.flops
    span = list(_spaced(min(rung.flops for rung in study.ladder.rungs), 100 * held_out))
    valleys = [(v.flops, v.best_parameters) for v in study.valleys]
    laws = (study.fit.law, *PUBLISHED, KAPLAN)
    series = [Series("isoFLOP curves", valleys, 0)]
    series += [Series(law.name, [(c, law.optimum(c)[0]) for c in span], i + 1, line=True) for i, law in enumerate(laws)]
    return chart("Best size over compute", "FLOPs", series, log_y=True)


def _spaced(low: float, high: float, count: int = 30) -> list[float]:
    return [low * (high / low) ** (index / (count - 1)) for index in range(count)]


def chart(title: str, x_label: str, series: Sequence[Series], *, log_y: bool = False) -> str:
    """An SVG chart with a logarithmic x axis, and y axis if asked for. Series without points are left out."""
    drawn = [one for one in series if one.points]
    xs = [math.log10(x) for one in drawn for x, _ in one.points]
    ys = [math.log10(y) if log_y else y for one in drawn for _, y in one.points]
    places = _Scale(min(xs), max(xs)), _Scale(min(ys), max(ys))
    named = [one for one in drawn if one.name]
    top = TOP + 16 * len(named)

    def at(point: Point) -> tuple[float, float]:
        x, y = math.log10(point[0]), math.log10(point[1]) if log_y else point[1]
        return LEFT + places[0](x) * (WIDTH - LEFT - 14), HEIGHT - BOTTOM - places[1](y) * (HEIGHT - BOTTOM - top)

    body = [_text(8, 16, title, weight="600"), _text(WIDTH - 14, HEIGHT - 6, x_label, anchor="end")]
    body += [part for index, one in enumerate(named) for part in _legend(one, TOP + 16 * index)]
    for value in _log_ticks(places[0]):
        x = at((value, 1.0))[0]
        body.append(_text(x, HEIGHT - BOTTOM + 18, f"{value:.0e}".replace("e+", "e"), anchor="middle"))
    for value in _log_ticks(places[1]) if log_y else places[1].ticks():
        y = at((10.0 ** places[0].low, value))[1]
        body.append(f'<line x1="{LEFT}" x2="{WIDTH - 14}" y1="{y:.1f}" y2="{y:.1f}" stroke="#8884" />')
        label = f"{value:.0e}".replace("e+", "e") if log_y else f"{value:.4g}"
        body.append(_text(LEFT - 6, y + 4, label, anchor="end"))
    body += [_drawn(one, at) for one in drawn]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'font-family="system-ui, sans-serif" font-size="12">{"".join(body)}</svg>'
    )


class _Scale:
    """Values to a share of the axis, with a little room at both ends."""

    def __init__(self, low: float, high: float) -> None:
        room = 0.06 * ((high - low) or 1.0)
        self.low, self.high = low - room, high + room

    def __call__(self, value: float) -> float:
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        """Round values within."""
        span = self.high - self.low
        unit = 10.0 ** math.floor(math.log10(span / 4))
        step = next(unit * factor for factor in (1, 2, 5, 10) if span / (unit * factor) <= 6)
        first, last = math.ceil(self.low / step), math.floor(self.high / step)
        return [index * step for index in range(first, last + 1)]


def _log_ticks(scale: _Scale) -> list[float]:
    """Powers of ten within, with their halves and fifths where there are few."""
    decades = range(math.floor(scale.low), math.ceil(scale.high) + 1)
    factors = (1, 2, 5) if scale.high - scale.low < 3 else (1,)
    found = [factor * 10.0**decade for decade in decades for factor in factors]
    return [value for value in found if scale.low <= math.log10(value) <= scale.high]


def _drawn(one: Series, at: Callable[[Point], tuple[float, float]]) -> str:
    colour = COLOURS[one.colour % len(COLOURS)]
    places = [at(point) for point in one.points]
    if one.line:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        return f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2" />'
    return "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}" />' for x, y in places)


def _legend(one: Series, y: float) -> list[str]:
    colour = COLOURS[one.colour % len(COLOURS)]
    return [f'<rect x="{LEFT}" y="{y - 2:.1f}" width="12" height="4" rx="2" fill="{colour}" />',
            _text(LEFT + 18, y + 4, one.name)]  # fmt: skip


def _text(x: float, y: float, text: str, *, anchor: str = "start", weight: str = "400") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}" fill="currentColor">'
        f"{html.escape(text)}</text>"
    )

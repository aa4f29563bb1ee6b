"""The lineage of a run as a picture: one box a product from the sources down, an arc for each that went into another.

Boxes stand below each other and arcs beside them, so that it reads on a phone too and no arc crosses a text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup, escape

WIDTH, ROW, BOX, LEFT = 560, 46, 34, 4
EDGE = 380
"""Right end of the boxes, where the arcs begin."""


def graph(chain: Sequence[Mapping[str, Any]], sources: Sequence[Mapping[str, Any]]) -> Markup:
    """An SVG of the report's chain (newest product first) and the sources of raw; every text is escaped."""
    nodes = [(f"source {row['source']}", _source(row), "") for row in sources]
    nodes += [(str(link["product"]), f"{link['digest'][:12]} by {link['verb']}", str(link["product"]))
              for link in reversed(chain)]  # fmt: skip
    place = {name: number for number, (name, _, _) in enumerate(nodes)}
    edges = [(f"source {row['source']}", "raw", False) for row in sources]
    edges += [(part["name"], link["product"], bool(part["earlier"]))
              for link in chain for part in link["inputs"] if part["is_product"]]  # fmt: skip
    body = [_arc(place[start], place[end], earlier) for start, end, earlier in edges if start in place and end in place]
    body += [_box(number, *node) for number, node in enumerate(nodes)]
    height = ROW * len(nodes) + 4
    label = "; ".join(f"{start} went into {end}" for start, end, _ in edges if start in place and end in place)
    return Markup(
        f'<svg class="lineage" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="100%" '
        f'style="max-width:{WIDTH}px" role="img" aria-label="{escape(label)}" font-family="system-ui, sans-serif" '
        f'font-size="13">{"".join(body)}</svg>'
    )


def _source(row: Mapping[str, Any]) -> str:
    units = [f"{row[unit]:,.0f} {unit}" for unit in ("pages", "documents", "dialogues", "preferences") if row.get(unit)]
    return ", ".join([str(row.get("licence") or "no licence"), *units])


def _box(number: int, name: str, about: str, anchor: str) -> str:
    y = number * ROW + 4
    fill = "none" if anchor else "#8882"
    box = (
        f'<rect x="{LEFT}" y="{y}" width="{EDGE - LEFT}" height="{BOX}" rx="5" fill="{fill}" stroke="currentColor" '
        f'stroke-opacity="0.45" /><text x="{LEFT + 10}" y="{y + 22}" fill="currentColor">'
        f'<tspan font-weight="600">{escape(_short(name, 24))}</tspan>'
        f'<tspan dx="8" opacity="0.75">{escape(_short(about, 38))}</tspan></text>'
    )
    return f'<a href="#product-{escape(anchor)}">{box}</a>' if anchor else box


def _arc(start: int, end: int, earlier: bool) -> str:
    y0, y1 = (number * ROW + 4 + BOX / 2 for number in (start, end))
    bend = EDGE + min(26 + 20 * abs(end - start), 2 * (WIDTH - EDGE) / 1.5 - 6)
    style = 'stroke="#c2410c" stroke-dasharray="5 4"' if earlier else 'stroke="currentColor" stroke-opacity="0.55"'
    return (
        f'<path d="M{EDGE},{y0 + 5:.0f} C{bend:.0f},{y0 + 5:.0f} {bend:.0f},{y1 - 5:.0f} {EDGE + 7},{y1 - 5:.0f}" '
        f'fill="none" stroke-width="1.6" {style} />'
        f'<path d="M{EDGE + 1},{y1 - 5:.0f} l8,-4 v8 z" fill="currentColor" fill-opacity="0.7" />'
    )


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"

"""A model card in Markdown, from facts alone: what it learned from, how, what came out, and what it is not for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class DataSource:
    """One source of training text: how much of it survived cleaning, and under which licence it came."""

    name: str
    documents: int
    licence: str = "not stated"


@dataclass(frozen=True)
class CardFacts:
    """What a card tells. Mappings are printed in their own order."""

    name: str
    summary: str
    sources: Sequence[DataSource] = ()
    settings: Mapping[str, str | int | float] = field(default_factory=dict)
    results: Mapping[str, str | int | float] = field(default_factory=dict)
    feedback: str = ""
    limits: Sequence[str] = ()
    lineage: Mapping[str, str] = field(default_factory=dict)
    """Digest by product, so that the card names exactly what the model was made from."""


def render_card(facts: CardFacts) -> str:
    """The card as Markdown with a final newline; a section without facts is left out."""
    sections = [
        f"# {facts.name}\n\n{facts.summary}",
        _table("Data", ("source", "documents", "licence"), [(s.name, s.documents, s.licence) for s in facts.sources]),
        _table("Training", ("setting", "value"), list(facts.settings.items())),
        _table("Results", ("figure", "value"), list(facts.results.items())),
        f"## Feedback\n\n{facts.feedback}" if facts.feedback else "",
        "## Limits\n\n" + "\n".join(f"- {limit}" for limit in facts.limits) if facts.limits else "",
        _table("Made from", ("product", "SHA-256 of its manifest"), list(facts.lineage.items())),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str | int | float]]) -> str:
    if not rows:
        return ""
    lines = [columns, ["---"] * len(columns), *([_cell(value) for value in row] for row in rows)]
    return f"## {title}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: str | int | float) -> str:
    text = f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if isinstance(value, float) else value
    return " ".join(text.replace("|", "\\|").split())

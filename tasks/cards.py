"""Model card and data card of a workspace, from the reports that its stages left: no figure is measured here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llm_core import artifacts
from llm_core.pipeline import PIPELINE, Stage
from llm_core.release.card import DataFacts, ModelFacts, render_card, render_data_card
from llm_core.release.gate import Verdict
from tasks.workspace import Workspace

TRAINED = {
    "base": ("pretrain",),
    "chat": ("pretrain", "sft"),
    "aligned": ("pretrain", "sft", "reward", "align"),
}
"""The stages whose settings and curves made a model."""
CURVES = ("train/loss", "validation/loss", "validation/bits_per_byte", "validation/problem_accuracy")
UNSAID = ("None", "[]", "{}", "auto")
LEFT_OUT = ("law.", "sample_", "keep_", "save_every", "threads", "device", "evaluate_every")
MODEL_LIMITS = (
    "It repeats, invents and errs; check what it says before you use it.",
    "It knows what its training text says, in the languages of that text, up to when that text was fetched.",
    "It was not tuned to refuse; the safety figures above, where there are any, say all that is known.",
    "The gate's judge checks answers to small problems; other abilities are only watched by the budgets.",
)
DATA_LIMITS = (
    "Licences are those that the sources state or that were configured; nobody has cleared them.",
    "Personal data is masked by patterns, which miss what they do not know.",
    "Text that a source holds by mistake or malice is in the data unless a rule above dropped it.",
)
Reports = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Cards:
    """Two Markdown texts."""

    model: str
    data: str


def make_cards(space: Workspace, model: str, verdict: Verdict | None) -> Cards:
    """The cards of `model` (chat or aligned) as the workspace made it, with the gate's verdict on it."""
    reports = {row.verb: space.read_report(row.verb) or {} for row in PIPELINE}
    return Cards(_model_card(space, reports, model, verdict), _data_card(reports))


def write_cards(space: Workspace, cards: Cards) -> None:
    """Lay the cards beside the reports: reports/model_card.md and reports/data_card.md."""
    folder = space.root / "reports"
    folder.mkdir(exist_ok=True)
    artifacts.write_atomic(folder / "model_card.md", cards.model.encode())
    artifacts.write_atomic(folder / "data_card.md", cards.data.encode())


def _model_card(space: Workspace, reports: Reports, model: str, verdict: Verdict | None) -> str:
    summary = json.loads((space.product("scores") / "summary.json").read_text())
    shape = json.loads((space.product(model) / "config.json").read_text())
    steps = TRAINED[model]
    return render_card(
        ModelFacts(
            name=f"groundup {model}",
            summary=_about(model, shape, reports),
            sources=_sources(reports),
            settings={verb: _settings(reports[verb].get("params", {})) for verb in steps},
            curves={
                f"{verb}: {name}": reports[verb]["curves"][name]
                for verb in steps
                for name in CURVES
                if len(reports[verb].get("curves", {}).get(name, [])) > 1
            },
            results=_results(summary, model),
            checks=[
                {"check": c.name, "figure": c.value, "limit": float(c.limit), "passed": c.passed}
                for c in (verdict.checks if verdict else ())
            ],
            verdict=_capital(verdict.reason) if verdict else "",
            feedback=_table(reports, "collect", "votes") if model == "aligned" else (),
            feedback_text=_feedback(reports) if model == "aligned" else "",
            limits=MODEL_LIMITS,
            lineage=_lineage(reports, [row for row in PIPELINE if row.makes != "scores"]),
        )
    )


def _about(model: str, shape: Mapping[str, Any], reports: Reports) -> str:
    """One sentence of what the model is."""
    parameters = reports["pretrain"].get("metrics", {}).get("parameters")
    size = f"{round(parameters):,} parameters, " if parameters else ""
    context = shape.get("n_positions") or shape.get("max_position_embeddings")
    return (
        f"The model `{model}` of a run of Groundup: {shape['model_type']}, {size}vocabulary {shape['vocab_size']:,}, "
        f"context {context:,} tokens, trained from random weights on the text below (see the data card)."
    )


def _settings(params: Mapping[str, Any]) -> dict[str, str]:
    said = {name: str(value) for name, value in sorted(params.items()) if str(value) not in UNSAID}
    return {name: value for name, value in said.items() if not name.startswith(LEFT_OUT)}


def _results(summary: Mapping[str, Any], model: str) -> list[dict[str, Any]]:
    """The model's figures with their intervals, and the trivial baselines of the same tasks."""
    figures = summary["models"][model]
    intervals = figures.get("intervals", {})
    rows: list[dict[str, Any]] = []
    for name, value in figures.items():
        if isinstance(value, int | float):
            known = intervals.get(name, {})
            bounds = {"low": known.get("low"), "high": known.get("high"), "prompts": known.get("n")}
            rows.append({"figure": name, "value": float(value), **bounds})
    for task, methods in summary.get("baselines", {}).items():
        rows += [{"figure": f"{task}, baseline {name}", "value": float(value)} for name, value in methods.items()]
    return rows


def _feedback(reports: Reports) -> str:
    """Who voted, and how the votes were used."""
    metrics, method = reports["collect"].get("metrics", {}), reports["align"].get("params", {}).get("method", "?")
    people, votes = round(metrics.get("people_votes", 0)), round(metrics.get("votes", 0))
    raters = sorted({str(row.get("rater")) for row in _table(reports, "collect", "votes")})
    return (
        f"Tuned by {method} on preferences of: {', '.join(raters) or 'nobody'}. {votes:,} votes in all, "
        f"{people:,} of them by people."
    )


def _data_card(reports: Reports) -> str:
    clean = reports["clean"].get("metrics", {})
    kept = {name: round(clean[name]) for name in ("documents", "dialogues", "preferences") if name in clean}
    return render_data_card(
        DataFacts(
            name="groundup data",
            summary=f"The corpus of a run of Groundup: {', '.join(f'{n:,} {name}' for name, n in kept.items())}; "
            f"{round(clean.get('text_bytes', 0)):,} bytes of text in the documents.",
            sources=_table(reports, "acquire", "sources"),
            kept=_sources(reports),
            drops=_table(reports, "clean", "reasons"),
            outcomes=[_without(row, "url") for row in _table(reports, "acquire", "outcomes")],
            masked=_table(reports, "clean", "masked"),
            splits=_table(reports, "clean", "splits"),
            mixture=_table(reports, "tokenize", "mixture of the training stream"),
            steps=_steps(reports),
            limits=DATA_LIMITS,
            lineage=_lineage(reports, PIPELINE[:3]),
        )
    )


def _steps(reports: Reports) -> list[str]:
    """What was done to the text, from the settings of clean."""
    params = reports["clean"].get("params", {})
    metrics = reports["clean"].get("metrics", {})
    near = round(metrics.get("near_duplicates", 0))
    said = [
        f"HTML to text by {params.get('engine', '?')} or a site's own rule; characters repaired, controls removed.",
        "Documents that filters refuse are dropped with their reason; dialogues and preferences have their own checks.",
        f"Near duplicates, from a similarity of {params.get('near_duplicates.threshold', '?')}: {near:,}, "
        + ("dropped." if params.get("near_duplicates.drop") == "True" else "kept."),
        f"Documents that share {params.get('decontamination.n', '?')}-grams with the evaluation sets are dropped.",
        "Training and validation text share no group (module, site section), and problems no operands.",
    ]
    return ["Exact duplicates dropped.", *said] if params.get("drop_duplicates") == "True" else said


def _sources(reports: Reports) -> list[dict[str, Any]]:
    """What clean kept of each source, with the licence that acquire recorded."""
    licences = {row["source"]: row.get("licence") for row in _table(reports, "acquire", "sources")}
    return [{**row, "licence": licences.get(row["source"]) or "unknown"} for row in _table(reports, "clean", "funnel")]


def _without(row: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != name}


def _table(reports: Reports, verb: str, name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = reports[verb].get("tables", {}).get(name, [])
    return found


def _lineage(reports: Reports, rows: list[Stage] | tuple[Stage, ...]) -> dict[str, str]:
    found = {row.makes: str(reports[row.verb].get("product", "")) for row in rows}
    commit = reports[rows[-1].verb].get("run", {}).get("git_commit")
    return found | ({"code (git commit)": str(commit)} if commit else {})


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]

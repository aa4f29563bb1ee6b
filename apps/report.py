"""reports/index.html: one page, without any outside file, that tells a run from its outcome down to its sources.

It is made from the stages' reports alone, so the same reports give the same page; a report that is missing leaves its
section out, with a line that says so. Every text on it is escaped: pages of the web and a model's words come through.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from apps import lineage as lineage_graph
from apps import views
from llm_core import artifacts
from llm_core.pipeline import PIPELINE, VERBS
from tasks import tracking
from tasks.record import flatten
from tasks.workspace import Workspace

TEMPLATE = "report.html.j2"
MODELS = ("base", "chat", "aligned")
SETTINGS_THAT_MATTER = {
    "acquire": (),
    "clean": ("engine", "validation_share"),
    "tokenize": ("tokenizer", "vocab_size"),
    "pretrain": ("model", "steps", "batch_sequences", "optimizer.name", "schedule.name", "seed"),
    "sft": ("steps", "batch_dialogues", "optimizer.name", "problem_share", "seed"),
    "collect": ("prompts", "samples", "rater_noise"),
    "reward": ("steps", "batch_pairs", "learning_rate"),
    "align": ("method", "beta", "steps", "learning_rate"),
    "evaluate": ("problems", "answers", "choices", "temperature"),
}
"""A key stands for itself and for all below it; the page lists the others folded away."""

DRAWN_APART = {("clean", "funnel"), ("clean", "reasons")}
CORPUS = ("documents", "dialogues", "preferences")
RATERS = {"person": "votes by people", "simulated": "votes by the simulated rater", "dataset": "pairs of a dataset"}
SHOWN_AT_MOST = 300
"""Rows of a table that the page shows; the report's file holds all."""

Reports = Mapping[str, Mapping[str, Any]]


def write_report(space: Workspace, states: Mapping[str, str] | None = None) -> Path:
    """Write the page from what is in the workspace's reports; its path.

    `states` says what became of each stage in the run that just ended (ran, restored, fresh, skipped), where known.
    """
    reports = {verb: report for verb in VERBS if (report := space.read_report(verb))}
    verdict = space.read_report("promote") or {}
    path = space.report("index").with_suffix(".html")
    path.parent.mkdir(exist_ok=True)
    artifacts.write_atomic(path, render(space, reports, verdict, states or {}).encode())
    return path


def render(space: Workspace, reports: Reports, verdict: Mapping[str, Any], states: Mapping[str, str]) -> str:
    """The page's HTML."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": views.number,
        "words": views.words,
        "duration": views.duration,
        "written": views.written,
    }
    chain = lineage(reports)
    sources = reports.get("acquire", {}).get("tables", {}).get("sources", [])
    return environment.get_template(TEMPLATE).render(
        name=space.name,
        outcome=outcome(reports, verdict),
        missing=[verb for verb in VERBS if verb not in reports],
        reports=reports,
        key_figures=key_figures(reports),
        funnel=funnel(reports),
        tables={verb: [views.view(views.words(title), rows[:SHOWN_AT_MOST]) for title, rows in report["tables"].items()
                       if rows and (verb, title) not in DRAWN_APART]
                for verb, report in reports.items()},
        charts={verb: _charts(verb, report) for verb, report in reports.items()},
        comparison=comparison(reports),
        verdict=verdict,
        differences=differences(verdict),
        stages=stages(space, reports, states),
        settings=settings(space, reports),
        versions=versions(reports),
        lineage=chain,
        graph=lineage_graph.graph(chain, sources),
        sources=sources,
    )  # fmt: skip


def outcome(reports: Reports, verdict: Mapping[str, Any]) -> dict[str, str]:
    """What came out, as a heading, a sentence, and a mood: `good`, `kept` (the gate refused) or `open`."""
    if not verdict:
        done = ", ".join(reports) or "none"
        return {"mood": "open", "title": "No verdict yet", "text": f"Stages with a report: {done}."}
    champion = verdict.get("champion") or "none"
    if verdict["scores"] != reports.get("evaluate", {}).get("product"):
        text = f"The champion is {champion}, but the gate has not judged the present scores."
        return {"mood": "open", "title": "Not judged yet", "text": text}
    verdicts = verdict.get("verdicts", {})
    crowned = [model for model in reversed(MODELS) if verdicts.get(model, {}).get("promoted")]
    if crowned and crowned[0] == "aligned":
        title, mood = "The aligned model is the new champion", "good"
    elif champion == "none":
        title, mood = "No model passed the gate", "kept"
    elif crowned:
        title, mood = f"The {crowned[0]} model is the first champion; the gate refused the aligned one", "kept"
    elif "aligned" in verdicts:
        title, mood = "The gate refused the aligned model; the champion stays", "kept"
    else:
        title, mood = "The champion stays", "good"
    return {"mood": mood, "title": title, "text": f"Champion: {champion}. {_capital(verdict['reason'])}."}


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:].rstrip(".")


@dataclass(frozen=True)
class Figure:
    """A number worth a place at the top."""

    label: str
    text: str
    note: str = ""


def key_figures(reports: Reports) -> list[Figure]:
    """The handful of numbers that sum a run up, those that are known."""

    def metric(verb: str, name: str) -> float | None:
        value: float | None = reports.get(verb, {}).get("metrics", {}).get(name)
        return value

    found = [
        ("documents kept", metric("clean", "documents"), ""),
        ("training tokens", metric("tokenize", "train_tokens"), ""),
        ("parameters", metric("pretrain", "parameters"), ""),
        ("bits per byte", metric("pretrain", "bits_per_byte"), "base model, held-out pages"),
    ]
    figures = [Figure(label, views.number(value), note) for label, value, note in found if value is not None]
    figures += [Figure(label, f"{count:,}", "made the aligned model") for label, count in feedback(reports)]
    scores = [(f"{model}: problems solved", f"{model}_greedy_accuracy", "held out, greedy") for model in MODELS[1:]]
    scores.append(("chat: true answer of four", "chat_choice_accuracy", "held-out docstrings"))
    for label, name, note in scores:
        if (share := metric("evaluate", name)) is not None:
            figures.append(Figure(label, f"{share:.1%}", note))
    if runs := [report["run"] for report in reports.values()]:
        figures.append(Figure("time in stages", views.duration(sum(run["seconds"] for run in runs))))
        figures.append(Figure("largest process", f"{max(run['peak_rss_mb'] for run in runs):,.0f} MB"))
    return figures


def feedback(reports: Reports) -> list[tuple[str, int]]:
    """Whose votes the reward and the aligned model learned from, and how many."""
    counts: dict[str, int] = {}
    for row in reports.get("collect", {}).get("tables", {}).get("votes", []):
        counts[row["rater"]] = counts.get(row["rater"], 0) + int(row["votes"])
    return [(RATERS.get(rater, rater), count) for rater, count in sorted(counts.items())]


def funnel(reports: Reports) -> list[tuple[str, tuple[views.Bar, ...]]]:
    """From what was fetched to what is kept, for each kind of text, with what was dropped by source and reason."""
    fetched, kept = (reports.get(verb, {}).get("metrics", {}) for verb in ("acquire", "clean"))
    dropped: dict[str, list[tuple[str, float]]] = {}
    for row in reports.get("clean", {}).get("tables", {}).get("reasons", []):
        label = f"dropped: {row['reason']} ({row['source']})"
        dropped.setdefault(row["what"], []).append((label, row["dropped"]))
    found = []
    for what in CORPUS:
        count = fetched.get(what, 0) + (fetched.get("pages", 0) if what == "documents" else 0)
        if not count:
            continue
        reasons = dropped.get(what, [])
        name = "pages and documents" if what == "documents" else what
        end = [(f"{what} kept", kept[what])] if what in kept else []
        tones = ["", *["drop"] * len(reasons), *["kept"] * len(end)]
        found.append((name, views.bars([(f"{name} fetched", count), *reasons, *end], tones)))
    return found


def _charts(verb: str, report: Mapping[str, Any]) -> tuple[list[Markup], list[Markup]]:
    first, rest = views.charts(verb, report["curves"])
    return [Markup(chart) for chart in first], [Markup(chart) for chart in rest]  # plots escapes its texts


def comparison(reports: Reports) -> dict[str, Any]:
    """The same prompts before and after tuning: a row a prompt, a column a model."""
    samples = [sample for sample in reports.get("evaluate", {}).get("samples", []) if "model" in sample]
    models = [m for m in MODELS if any(s["model"] == m for s in samples)]
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for sample in samples:
        kind = sample.get("kind") or sample.get("task") or ""
        row = rows.setdefault((kind, sample["prompt"]), {"kind": kind, "prompt": sample["prompt"], "texts": {}})
        row["texts"][sample["model"]] = views.written(sample["text"])
        row["true"] = sample.get("true") or sample.get("right") or row.get("true")
    return {"models": models, "rows": list(rows.values())}


def differences(verdict: Mapping[str, Any]) -> dict[str, views.View]:
    """By judged model, how its answers differ from the champion's, where they were compared."""
    return {
        model: views.view("", [{"who": f"{model} - champion", **judged["difference"]}])
        for model, judged in verdict.get("verdicts", {}).items()
        if judged.get("difference")
    }


def stages(space: Workspace, reports: Reports, states: Mapping[str, str]) -> list[dict[str, Any]]:
    """A row a stage: time, memory, what became of it, and its page in MLflow where a tracker is known."""
    uri = tracking.tracking_uri(space.project)
    longest = max((report["run"]["seconds"] for report in reports.values()), default=0) or 1
    rows = []
    for row in PIPELINE:
        run = reports.get(row.verb, {}).get("run", {})
        run_id = run.get("mlflow_run_id")
        rows.append({
            "verb": row.verb, "what": row.what, "run": run,
            "share": run["seconds"] / longest if run else 0,
            "state": states.get(row.verb) or ("done" if run else "not run"),
            "link": f"{uri}/#/runs/{run_id}" if uri and run_id else None,
        })  # fmt: skip
    return rows


def settings(space: Workspace, reports: Reports) -> list[dict[str, Any]]:
    """By stage: the settings that matter, all others, and which differ from the default."""
    found = []
    for row in PIPELINE:
        if row.verb not in reports:
            continue
        plain = flatten(row.config.model_validate({}).model_dump(mode="json"))
        names = SETTINGS_THAT_MATTER[row.verb]
        lines = [{"name": name, "value": value, "changed": plain.get(name) != value,
                  "matters": any(name == key or name.startswith(f"{key}.") for key in names)}
                 for name, value in reports[row.verb]["params"].items() if value != "None"]  # fmt: skip
        found.append({"verb": row.verb, "first": [line for line in lines if line["matters"] or line["changed"]],
                      "rest": [line for line in lines if not (line["matters"] or line["changed"])],
                      "shape": _shape(space, reports) if row.verb == "pretrain" else {}})  # fmt: skip
    return found


def _shape(space: Workspace, reports: Reports) -> dict[str, Any]:
    """The model's shape, from the base model's own manifest, if the model still stands there."""
    base = space.product("base")
    if not (base / artifacts.MANIFEST).is_file() or artifacts.digest(base) != reports["pretrain"]["product"]:
        return {}
    shape: dict[str, Any] = artifacts.read_manifest(base)["facts"].get("model", {})
    return shape


def versions(reports: Reports) -> list[tuple[str, str]]:
    """Package versions; where stages were run with different ones, each is named with its stages."""
    used: dict[str, dict[str, list[str]]] = {}
    for verb, report in reports.items():
        for package, version in report["versions"].items():
            used.setdefault(package, {}).setdefault(version, []).append(verb)
    return [(package, next(iter(found)) if len(found) == 1
             else ", ".join(f"{version} ({', '.join(verbs)})" for version, verbs in found.items()))
            for package, found in sorted(used.items())]  # fmt: skip


def lineage(reports: Reports) -> list[dict[str, Any]]:
    """Products from the newest back to the sources, with what each was made from.

    An input whose digest is not that of the product that now stands there is marked: it was made from an earlier one.
    """
    made = {row.makes: reports[row.verb]["product"] for row in PIPELINE if row.verb in reports}
    chain = []
    for row in reversed(PIPELINE):
        if row.verb in reports:
            inputs = [{"name": name, "digest": digest, "is_product": name in row.needs,
                       "earlier": name in made and made[name] != digest}
                      for name, digest in reports[row.verb]["inputs"].items()]  # fmt: skip
            chain.append({"product": row.makes, "digest": made[row.makes], "verb": row.verb, "inputs": inputs,
                          "commit": reports[row.verb]["run"].get("git_commit", "")})  # fmt: skip
    return chain

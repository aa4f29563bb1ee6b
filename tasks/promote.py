"""The last step: ask the gate, register the models, move the aliases. A refusal is a successful run.

With no champion yet, chat becomes champion if it keeps the absolute budgets; then `aligned` must beat whoever is
champion, by the scores that were stored when that champion was judged.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llm_core import artifacts
from llm_core.pipeline import PIPELINE
from llm_core.release.card import CardFacts, DataSource, render_card
from llm_core.release.gate import Verdict, decide
from llm_core.release.options import GateOptions
from llm_core.release.scores import Scores, read_scores
from tasks import registry, tracking
from tasks.session import Session
from tasks.workspace import Workspace


@dataclass(frozen=True)
class Promotion:
    """What became of the candidate: `ran`, `fresh` (judged before), `skipped` or `deferred` (no registry)."""

    state: str
    reason: str
    champion: str = ""


def promote(session: Session, scores: Path) -> Promotion:
    """Judge the newest scores, unless the registry already holds a verdict on them."""
    space = session.space
    outcome = session.outcomes.get("evaluate")
    if outcome is None or outcome.state == "skipped":
        return Promotion("skipped", "no verdict was asked for")
    if space.name != "main":
        return Promotion("skipped", f"experiments are not promoted; `groundup adopt {space.name}` first")
    uri = tracking.tracking_uri(space.project)
    digest = artifacts.digest(scores)
    known = space.read_report("promote")
    if known and known["scores"] == digest and uri and registry.recorded_scores(uri) == digest:
        return Promotion("fresh", known["reason"], known["champion"])
    try:
        if uri is None:
            raise ConnectionError("no tracking server is running")
        return _judge(space, scores, digest, registry.Registry(uri))
    except (ConnectionError, _mlflow_error()) as error:
        return Promotion("deferred", f"no verdict, because the registry cannot be reached: {error}")


def _mlflow_error() -> type[Exception]:
    from mlflow.exceptions import MlflowException

    error: type[Exception] = MlflowException
    return error


def _judge(space: Workspace, scores: Path, digest: str, registered: registry.Registry) -> Promotion:
    options = space.config("promote")
    assert isinstance(options, GateOptions)
    run = registered.client.create_run(tracking.experiment_id(registered.client, "promote"), run_name=space.name)
    run_id = run.info.run_id
    champion, verdicts = registered.get("champion"), {}
    theirs: Scores | None = None
    if champion is None:
        verdicts["chat"] = decide(read_scores(scores, "chat"), None, options)
        if verdicts["chat"].promoted:
            champion = registered.register(run_id, "chat", space.product("chat"), _card(space, "chat"), scores)
            registered.point("champion", champion)
            theirs = read_scores(scores, "chat")
    else:
        with tempfile.TemporaryDirectory() as folder:
            theirs = read_scores(registered.scores_of(champion, Path(folder)), champion.model)
    if champion is not None and champion.digest == artifacts.digest(space.product("aligned")):
        reason = "aligned is the champion already"
    else:
        verdicts["aligned"] = decide(read_scores(scores, "aligned"), theirs, options)
        reason = verdicts["aligned"].reason
        card = _card(space, "aligned")
        candidate = registered.register(run_id, "aligned", space.product("aligned"), card, scores)
        registered.point("candidate", candidate)
        if verdicts["aligned"].promoted:
            if champion is not None:
                registered.point("previous", champion)
            registered.point("champion", candidate)
            champion = candidate
    name = f"version {champion.number} ({champion.model})" if champion else "none"
    _remember(space, registered, run_id, digest, verdicts, reason, name)
    return Promotion("ran", reason, name)


def _remember(
    space: Workspace,
    registered: registry.Registry,
    run_id: str,
    digest: str,
    verdicts: dict[str, Verdict],
    reason: str,
    champion: str,
) -> None:
    """Write the verdict into reports/promote.json and the MLflow run; last of all tell the registry it has it."""
    from mlflow.entities import Metric

    content = {
        "scores": digest,
        "reason": reason,
        "champion": champion,
        "verdicts": {model: asdict(verdict) for model, verdict in verdicts.items()},
        "run": {"mlflow_run_id": run_id},
    }
    artifacts.write_atomic(space.report("promote"), artifacts.dump_json(content))
    registered.client.log_artifact(run_id, str(space.report("promote")))
    checks = [(model, check) for model, verdict in verdicts.items() for check in verdict.checks]
    metrics = [Metric(f"{model}/{check.name}", check.value, 0, 0) for model, check in checks if check.value is not None]
    registered.client.log_batch(run_id, metrics=metrics)
    registered.client.set_terminated(run_id)
    registered.remember_verdict(digest)


def _table(reports: dict[str, Any], verb: str, name: str) -> list[dict[str, Any]]:
    table: list[dict[str, Any]] = reports[verb].get("tables", {}).get(name, [])
    return table


def _card(space: Workspace, model: str) -> str:
    """The model card, from the reports and manifests of the run that made the model."""
    reports: dict[str, Any] = {row.verb: space.read_report(row.verb) or {} for row in PIPELINE}
    summary = json.loads((space.product("scores") / "summary.json").read_text())["models"][model]
    figures = {name: value for name, value in summary.items() if isinstance(value, int | float)}
    licences = {row["source"]: row.get("licence", "unknown") for row in _table(reports, "acquire", "sources")}
    votes = reports["collect"].get("metrics", {})
    return render_card(
        CardFacts(
            name=f"groundup {model}",
            summary=f"The model `{model}` of one run of the Groundup pipeline.",
            sources=[
                DataSource(f"{row['source']}: {row['what']}", int(row["kept"]), licences.get(row["source"], "unknown"))
                for row in _table(reports, "clean", "funnel")
            ],
            settings=reports["pretrain"].get("params", {}),
            results=figures,
            feedback=", ".join(f"{name} {value:g}" for name, value in votes.items()),
            limits=["A small model: it repeats, invents and errs; check what it says before you use it."],
            lineage={row.makes: reports[row.verb].get("product", "") for row in PIPELINE},
        )
    )

"""The last step: ask the gate, register the models, move the aliases. A refusal is a successful run.

With no champion yet, chat becomes champion if it keeps the absolute budgets; then `aligned` must beat whoever is
champion. The champion's scores were stored with its version when it was judged; if they were of other prompts than
today's, the champion is scored again. Every verdict is a run of MLflow's experiment `groundup/promote`.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path

from llm_core import artifacts
from llm_core.contract import BadInput
from llm_core.release.gate import Verdict, comparable, decide
from llm_core.release.options import GateOptions
from llm_core.release.scores import Scores, read_scores
from tasks import damage, registry, rescore, tracking
from tasks.cards import make_cards, write_cards
from tasks.session import Session
from tasks.workspace import Workspace

MODELS = ("chat", "aligned")
"""What may be promoted."""


@dataclass(frozen=True)
class Promotion:
    """What became of the candidate: `ran`, `fresh` (judged before), `skipped` or `deferred` (no registry)."""

    state: str
    reason: str
    champion: str = ""


@dataclass
class _Judgement:
    """What one look of the gate found and did."""

    verdicts: dict[str, Verdict] = field(default_factory=dict)
    reason: str = ""
    champion: registry.Version | None = None
    scored_again: bool = False

    @property
    def champion_name(self) -> str:
        """The champion in words."""
        return f"version {self.champion.number} ({self.champion.model})" if self.champion else "none"


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
        return judge_now(space, uri)
    except (ConnectionError, _mlflow_error()) as error:
        return Promotion("deferred", f"no verdict, because the registry cannot be reached: {error}")


def _mlflow_error() -> type[Exception]:
    from mlflow.exceptions import MlflowException

    error: type[Exception] = MlflowException
    return error


def judge_now(space: Workspace, uri: str) -> Promotion:
    """Let the gate judge the workspace's scores, whatever was judged before.

    Raises what MLflow raises, and `BadInput` if scores or models are not what their stages wrote.
    """
    options, scores = space.config("promote"), space.product("scores")
    assert isinstance(options, GateOptions)
    _check(space)
    digest = artifacts.digest(scores)
    registered = registry.Registry(uri)
    experiment = tracking.experiment_id(registered.client, "promote")
    run_id = registered.client.create_run(experiment, run_name=space.name, tags={"event": "verdict"}).info.run_id
    found = _Judgement(champion=registered.get("champion"))
    theirs = _first_champion(space, registered, run_id, scores, options, found)
    if found.champion is not None and found.champion.digest == artifacts.digest(space.product("aligned")):
        found.reason = "aligned is the champion already"
    else:
        _judge_aligned(space, registered, run_id, scores, options, found, theirs)
    _remember(space, registered, run_id, digest, options, found)
    return Promotion("ran", found.reason, found.champion_name)


def _check(space: Workspace) -> None:
    """Every byte of scores and models is what was written, and the scores are of these models."""
    report = space.read_report("evaluate")
    for product in ("scores", *MODELS):
        damage.check(space, product)
    for model in MODELS:
        folder = space.product(model)
        if report is not None and report["inputs"].get(model) != artifacts.digest(folder):
            raise BadInput(f"{folder}: the scores are of another {model}; `groundup run evaluate` measures this one")


def _first_champion(
    space: Workspace,
    registered: registry.Registry,
    run_id: str,
    scores: Path,
    options: GateOptions,
    found: _Judgement,
) -> Scores | None:
    """The scores to compare with. Without a champion, chat becomes it if it keeps the absolute budgets."""
    if found.champion is not None:
        return _scores_of(space, registered, found.champion, scores, found)
    chat = read_scores(scores, "chat")
    verdict = found.verdicts["chat"] = decide(chat, None, options)
    if not verdict.promoted:
        return None
    cards = make_cards(space, "chat", verdict)
    found.champion = registered.register(run_id, "chat", space.product("chat"), cards, scores)
    write_cards(space, cards)
    registered.point("champion", found.champion)
    return chat


def _scores_of(
    space: Workspace,
    registered: registry.Registry,
    champion: registry.Version,
    scores: Path,
    found: _Judgement,
) -> Scores:
    """The champion's stored scores, or new ones if the stored ones cannot be paired with today's.

    If it cannot be scored again, the stored scores come back, and the gate refuses to compare them.
    """
    with tempfile.TemporaryDirectory() as folder:
        stored = read_scores(registered.scores_of(champion, Path(folder)), champion.model)
    if comparable(read_scores(scores, "aligned"), stored):
        return stored
    try:
        model = registered.model_folder("champion", space.project / ".groundup" / "registry")
        again = read_scores(rescore.score_again(space, model, scores), rescore.MODEL)
    except BadInput as error:
        found.reason = f"; {error}"
        return stored
    found.scored_again = True
    return again


def _judge_aligned(
    space: Workspace,
    registered: registry.Registry,
    run_id: str,
    scores: Path,
    options: GateOptions,
    found: _Judgement,
    theirs: Scores | None,
) -> None:
    """Register aligned as candidate, and as champion if the gate says so."""
    verdict = found.verdicts["aligned"] = decide(read_scores(scores, "aligned"), theirs, options)
    found.reason = verdict.reason + found.reason
    cards = make_cards(space, "aligned", verdict)
    candidate = registered.register(run_id, "aligned", space.product("aligned"), cards, scores)
    registered.point("candidate", candidate)
    if not verdict.promoted:
        return
    write_cards(space, cards)
    if found.champion is not None:
        registered.point("previous", found.champion)
    registered.point("champion", candidate)
    found.champion = candidate


def _remember(
    space: Workspace,
    registered: registry.Registry,
    run_id: str,
    digest: str,
    options: GateOptions,
    found: _Judgement,
) -> None:
    """Write the verdict into reports/promote.json and the MLflow run; last of all tell the registry it has it."""
    from mlflow.entities import Metric, Param, RunTag

    content = {
        "scores": digest,
        "reason": found.reason,
        "champion": found.champion_name,
        "champion_scored_again": found.scored_again,
        "verdicts": {model: asdict(verdict) for model, verdict in found.verdicts.items()},
        "run": {"mlflow_run_id": run_id},
    }
    artifacts.write_atomic(space.report("promote"), artifacts.dump_json(content))
    registered.client.log_artifact(run_id, str(space.report("promote")))
    checks = [(model, check) for model, verdict in found.verdicts.items() for check in verdict.checks]
    metrics = [Metric(f"{model}/{check.name}", check.value, 0, 0) for model, check in checks if check.value is not None]
    limits = [Param(f"gate.{name}", str(value)) for name, value in options.model_dump(mode="json").items()]
    promoted = ", ".join(model for model, verdict in found.verdicts.items() if verdict.promoted)
    tags = {"promoted": promoted or "none", "champion": found.champion_name, "reason": found.reason[:4000]}
    registered.client.log_batch(
        run_id, metrics=metrics, params=limits, tags=[RunTag(name, value) for name, value in tags.items()]
    )
    registered.client.set_terminated(run_id)
    registered.remember_verdict(digest)

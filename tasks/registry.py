"""The model registry: versions of the model `groundup`, and the aliases champion, previous and candidate."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_core import artifacts
from llm_core.artifacts import BrokenProduct
from llm_core.contract import BadInput
from tasks import damage, tracking
from tasks.cards import Cards

MODEL = "groundup"


@dataclass(frozen=True)
class Version:
    """A registered model: its number, which model it was (chat, aligned), digests of the model and of its scores."""

    number: str
    model: str
    digest: str
    scores: str
    run_id: str


def _version(found: Any) -> Version:
    tags = found.tags
    return Version(str(found.version), tags["model"], tags["digest"], tags["scores"], found.run_id)


def _is_whole(folder: Path, digest: str) -> bool:
    try:
        damage.check_copy(folder, digest)
    except BrokenProduct:
        return False
    return True


def _short(card: str) -> str:
    """What the registry's page shows of a card: its head, since the page takes at most 5,000 characters."""
    return card.partition("\n## Training")[0][:4000]


def recorded_scores(uri: str) -> str | None:
    """Digest of the scores on which the registry holds its latest verdict; None if there is none or no answer."""
    found = tracking.ask(uri, "registered-models/get", name=MODEL)
    tags = {tag["key"]: tag["value"] for tag in found["registered_model"].get("tags", [])} if found else {}
    return tags.get("judged_scores")


class Registry:
    """Reads and moves aliases. Every call goes to the tracking server; it raises what MLflow raises."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.client = tracking.client(uri)

    def get(self, alias: str) -> Version | None:
        """The version that an alias points at, or None."""
        from mlflow.exceptions import MlflowException

        try:
            return _version(self.client.get_model_version_by_alias(MODEL, alias))
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise

    def register(self, run_id: str, model: str, folder: Path, cards: Cards, scores: Path) -> Version:
        """Upload a model's directory with its cards (README.md, DATA.md) and its scores, and make a version of them."""
        from mlflow.exceptions import MlflowException

        place = f"models/{model}"
        with tempfile.TemporaryDirectory() as temporary:
            staged = Path(temporary) / model
            shutil.copytree(folder, staged)
            (staged / "README.md").write_text(cards.model)
            (staged / "DATA.md").write_text(cards.data)
            self.client.log_artifacts(run_id, str(staged), place)
        self.client.log_artifacts(run_id, str(scores), f"scores/{model}")
        try:
            self.client.create_registered_model(MODEL)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        tags = {"model": model, "digest": artifacts.digest(folder), "scores": artifacts.digest(scores)}
        return _version(
            self.client.create_model_version(
                MODEL, f"runs:/{run_id}/{place}", run_id, tags=tags, description=_short(cards.model)
            )
        )

    def point(self, alias: str, version: Version) -> None:
        """Make `alias` point at `version`."""
        self.client.set_registered_model_alias(MODEL, alias, version.number)

    def remember_verdict(self, scores_digest: str) -> None:
        """Note that the registry now holds a verdict on these scores."""
        self.client.set_registered_model_tag(MODEL, "judged_scores", scores_digest)

    def scores_of(self, version: Version, into: Path) -> Path:
        """Download the scores that a version was judged by."""
        return Path(self.client.download_artifacts(version.run_id, f"scores/{version.model}", str(into)))

    def rollback(self) -> tuple[Version, Version]:
        """Exchange champion and previous, and keep a run of it in MLflow; returns the new champion and the old one."""
        champion, previous = self.get("champion"), self.get("previous")
        if champion is None or previous is None:
            raise BadInput("nothing to roll back to: the registry has no previous champion")
        self.point("champion", previous)
        self.point("previous", champion)
        words = {version: f"version {version.number} ({version.model})" for version in (champion, previous)}
        tags = {"event": "rollback", "champion": words[previous], "reason": f"rolled back from {words[champion]}"}
        run = self.client.create_run(tracking.experiment_id(self.client, "promote"), run_name="rollback", tags=tags)
        self.client.set_terminated(run.info.run_id)
        return previous, champion

    def model_folder(self, alias: str, cache: Path) -> Path:
        """The directory of the version that `alias` points at, downloaded once and kept under its digest.

        A copy that is no longer what was registered is downloaded again. Raises `BrokenProduct` if what comes is not.
        """
        version = self.get(alias)
        if version is None:
            raise BadInput(f"the registry has no {alias}; `groundup run` makes one")
        folder = cache / version.digest
        if not _is_whole(folder, version.digest):
            shutil.rmtree(folder, ignore_errors=True)
            cache.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=cache) as temporary:
                got = Path(self.client.download_artifacts(version.run_id, f"models/{version.model}", temporary))
                damage.check_copy(got, version.digest)
                got.rename(folder)
        return folder

    def link(self) -> str:
        """The registry's page for the model."""
        return f"{self.uri}/#/models/{MODEL}"

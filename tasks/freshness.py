"""Staleness, asked of DVC in this process: its content hashes are the only judge."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from llm_core.contract import BadInput
from llm_core.pipeline import PIPELINE
from tasks.workspace import Workspace

Reasons = dict[str, list[str]]


class Freshness:
    """Answers why a stage is stale. DVC does not look ahead, so after a change each later stage is asked again."""

    def __init__(self, space: Workspace) -> None:
        self.space = space
        self._known = _status(space.root)

    def why_stale(self, verb: str) -> list[str]:
        """Why a stage must run, in words; empty if it is fresh."""
        return self._known.get(verb, [])

    def changed(self, verb: str) -> None:
        """A stage's product changed: ask again about the stages after it."""
        verbs = [row.verb for row in PIPELINE]
        later = verbs[verbs.index(verb) :]
        self._known = {name: why for name, why in self._known.items() if name not in later} | _status(
            self.space.root, later
        )


def _status(root: Path, targets: list[str] | None = None) -> Reasons:
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    with contextlib.chdir(root):  # DVC's names and targets follow the process's directory
        try:
            with Repo(str(root)) as repo:
                found: dict[str, list[Any]] = repo.status(targets=targets)
        except DvcException as error:
            raise BadInput(f"{root}: DVC cannot say what is stale: {error}") from error
    return {
        verb.rpartition(":")[2]: [text for change in changes for text in _words(change)]
        for verb, changes in found.items()
    }


def _words(change: str | dict[str, Any]) -> list[str]:
    """One entry of DVC's status as sentences: `changed command`, `params.yaml: pretrain.steps modified`, ..."""
    if isinstance(change, str):
        return [change]
    words = []
    for path, state in [item for entries in change.values() for item in entries.items()]:
        keys = ", ".join(f"{key} {what}" for key, what in state.items()) if isinstance(state, dict) else None
        words.append(f"{path}: {keys}" if keys else f"{path} {state}")
    return words


def relink(space: Workspace, verbs: list[str]) -> None:
    """Link the products of `verbs` to DVC's cache, so that they do not take the disk twice."""
    from dvc.repo import Repo

    with contextlib.chdir(space.root), Repo(str(space.root)) as repo:
        repo.checkout(targets=verbs, relink=True)

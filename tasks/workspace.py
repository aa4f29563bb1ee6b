"""Where things are: a workspace holds params.yaml, dvc.yaml, products, reports and resume points of one line of work.

The main workspace is the project itself. An experiment (`runs/<name>/`) has its own params.yaml and dvc.lock, links to
the project's code and tracked files, and shares the project's DVC cache and crawl store.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from llm_core import artifacts
from llm_core.contract import BadInput, Config
from llm_core.pipeline import PIPELINE, Stage, product_path
from tasks import closure, params


@dataclass(frozen=True)
class Workspace:
    """`root` is the workspace's directory, `project` the directory of the main workspace (the same for main)."""

    root: Path
    project: Path

    @classmethod
    def at(cls, root: Path) -> Workspace:
        """The workspace at `root`. Raises `BadInput` if there is none."""
        root = root.resolve()
        for name in ("params.yaml", "dvc.yaml"):
            if not (root / name).is_file():
                raise BadInput(f"{root}: not a workspace (no {name} here)")
        is_experiment = root.parent.name == "runs" and (root.parent.parent / "dvc.yaml").is_file()
        return cls(root, root.parent.parent if is_experiment else root)

    @property
    def name(self) -> str:
        """`main`, or the experiment's name."""
        return "main" if self.root == self.project else self.root.name

    @cached_property
    def params(self) -> dict[str, Any]:
        """params.yaml as it is written."""
        return params.read(self.root / "params.yaml")

    def configs(self) -> dict[str, Config]:
        """All sections, checked. Raises `BadInput`, also for a stage's section that is not there: DVC wants each."""
        checked = params.check(self.params, "params.yaml")
        if missing := [row.verb for row in PIPELINE if not self.params.get(row.verb)]:
            raise BadInput(f"params.yaml: section {missing[0]!r} is missing; write at least one of its settings")
        return checked

    def config(self, verb: str) -> Config:
        """One section, checked, with where its work is done. Raises `BadInput`."""
        return params.placed(params.section_config(verb, self.params, "params.yaml"), self.params, "params.yaml")

    def product(self, name: str) -> Path:
        """The directory of a product."""
        return self.root / product_path(name)

    def report(self, verb: str) -> Path:
        """The report that a stage leaves beside its product."""
        return self.root / "reports" / f"{verb}.json"

    def read_report(self, verb: str) -> dict[str, Any] | None:
        """A stage's report, or None if there is none."""
        path = self.report(verb)
        return json.loads(path.read_text()) if path.is_file() else None

    def events(self, verb: str) -> Path:
        """The file of events that a stage writes while it runs."""
        return self.root / ".groundup" / "events" / f"{verb}.jsonl"

    def log(self, verb: str) -> Path:
        """What a stage's process printed when it last ran."""
        return self.root / ".groundup" / "logs" / f"{verb}.log"

    def inputs(self, stage: Stage) -> dict[str, str]:
        """Digest of each product and tracked file that the stage reads."""
        products = {need: artifacts.digest(self.product(need)) for need in stage.needs}
        return products | {path: closure.path_digest(self.root / path) for path in stage.files.values()}

    def fingerprint(self, stage: Stage, inputs: dict[str, str]) -> str:
        """Names a piece of work: equal config, inputs and code give the same one, so only equal work is resumed.

        Settings that only say how to compute are left out: training begun on two ranks may go on with one.
        """
        config = self.config(stage.verb)
        settings = config.model_dump(mode="json", exclude=set(config.how))
        code = {str(file): closure.path_digest(self.root / file) for file in closure.code_files(stage, self.root)}
        return hashlib.sha256(artifacts.dump_json([settings, inputs, code])).hexdigest()[:16]

    def scratch(self, stage: Stage, fingerprint: str) -> Path:
        """Resume points of that piece of work; made if absent."""
        folder = self.root / ".groundup" / "scratch" / f"{stage.verb}-{fingerprint}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def drop_finished_scratch(self, stage: Stage, keep: str = "") -> None:
        """Remove resume points of this stage's work that has ended, but for `keep`; what was interrupted stays."""
        for folder in (self.root / ".groundup" / "scratch").glob(f"{stage.verb}-*"):
            status = folder / "record" / "status"
            if folder.name != f"{stage.verb}-{keep}" and status.is_file() and status.read_text() == "FINISHED":
                shutil.rmtree(folder)


def workspaces(space: Workspace) -> list[Workspace]:
    """The main workspace and every experiment's."""
    roots = [path.parent for path in sorted((space.project / "runs").glob("*/dvc.yaml"))]
    return [Workspace.at(space.project), *(Workspace.at(root) for root in roots if (root / "params.yaml").is_file())]

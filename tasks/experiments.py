"""Experiments: a run with overrides works in `runs/<name>/` and leaves the main workspace as it was.

An experiment has its own params.yaml and dvc.lock and links to everything else of the project; products that the main
workspace already made come from the shared DVC cache without running.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
from pathlib import Path

from llm_core import artifacts
from llm_core.contract import BadInput
from tasks import params
from tasks.workspace import Workspace

# What an experiment has of its own; everything else of the project is linked.
OWN = frozenset({"params.yaml", "dvc.yaml", "dvc.lock", "data", "models", "reports", "runs"})
DVC_CONFIG = """\
[core]
    no_scm = true
    analytics = false
    check_update = false
[cache]
    dir = {cache}
    type = "reflink,hardlink,copy"
"""


def overrides(project: Path, preset: str | None, assignments: list[str]) -> params.Params:
    """A preset's values with `--set` laid over them. Raises `BadInput`."""
    chosen: params.Params = {}
    if preset:
        path = project / "presets" / f"{preset}.yaml"
        if Path(preset).name != preset or not path.is_file():  # a form's text must not lead out of presets/
            known = ", ".join(sorted(p.stem for p in path.parent.glob("*.yaml")))
            raise BadInput(f"no preset {preset!r}; the presets are {known}")
        chosen = params.read(path)
    return params.overlay(chosen, params.parse_assignments(assignments))


def name_for(preset: str | None, assignments: list[str], chosen: params.Params) -> str:
    """A name that says what was overridden; the same overrides always give the same one."""
    if preset and not assignments:
        return preset
    pairs = [text.lower().partition("=") for text in assignments]
    words = [preset or "", *(_slug(f"{path.rpartition('.')[2]}-{value}") for path, _, value in pairs)]
    digest = hashlib.sha256(artifacts.dump_json(chosen)).hexdigest()[:6]
    return "-".join([*[word[:20] for word in words if word][:3], digest])


def beside(project: Path, preset: str | None, settings: params.Params) -> Workspace:
    """The experiment that lays a preset and settings over the main workspace. Raises `BadInput`."""
    settings = params.filled(settings)
    chosen = params.overlay(overrides(project, preset, []), settings)
    return create(project, name_for(preset, list(params.assignments(settings)), chosen), chosen)


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text).strip("-")


def create(project: Path, name: str, chosen: params.Params) -> Workspace:
    """The experiment's workspace, made or brought up to date. Raises `BadInput` before anything is written."""
    merged = params.overlay(params.read(project / "params.yaml"), chosen)
    params.check(merged, f"params.yaml with the overrides of {name}")
    root = project / "runs" / name
    space = make_workspace(project, root, params.dump(merged), cache=project / ".dvc" / "cache")
    crawl = project / ".groundup" / "crawl"
    crawl.mkdir(parents=True, exist_ok=True)
    (root / ".groundup").mkdir(exist_ok=True)
    with contextlib.suppress(FileExistsError):
        (root / ".groundup" / "crawl").symlink_to(os.path.relpath(crawl, root / ".groundup"))
    return space


def make_workspace(project: Path, root: Path, params_text: str, cache: Path) -> Workspace:
    """A DVC workspace at `root` on the project's code, with its own settings and a DVC cache at `cache`."""
    (root / ".dvc").mkdir(parents=True, exist_ok=True)
    (root / ".dvc" / "config").write_text(DVC_CONFIG.format(cache=os.path.relpath(cache, root / ".dvc")))
    for entry in project.iterdir():
        link = root / entry.name
        theirs = entry.name not in OWN and not entry.name.startswith(".") and entry.suffix != ".egg-info"
        if theirs and not link.exists():
            link.symlink_to(os.path.relpath(entry, root))
    shutil.copyfile(project / ".dvcignore", root / ".dvcignore")
    shutil.copyfile(project / "dvc.yaml", root / "dvc.yaml")
    if (project / "dvc.lock").is_file() and not (root / "dvc.lock").is_file():
        shutil.copyfile(project / "dvc.lock", root / "dvc.lock")
    artifacts.write_atomic(root / "params.yaml", params_text.encode())
    return Workspace.at(root)


def adopt(project: Path, name: str) -> None:
    """Make an experiment's settings and products the main ones; nothing is computed. Raises `BadInput`."""
    from dvc.repo import Repo

    root = project / "runs" / name
    if Path(name).name != name or not (root / "dvc.lock").is_file():
        known = ", ".join(sorted(p.name for p in (project / "runs").glob("*"))) or "none"
        raise BadInput(f"no finished experiment {name!r}; the experiments are: {known}")
    for file in ("params.yaml", "dvc.lock"):
        artifacts.write_atomic(project / file, (root / file).read_bytes())
    with contextlib.chdir(project), Repo(str(project)) as repo:
        repo.checkout(force=True)

"""`groundup reproduce RUN`: build what a past run made once more, and say which products are byte-identical.

Everything comes from what was recorded: the commit and the stored difference from it, the settings, and the raw data
of the DVC cache. Each stage runs in a checkout of the commit at which it ran then, `runs/reproduce-<digest>/<commit>/`,
which is a workspace of its own: nothing of the main one is touched, and nothing is logged as if it were new. A stage
reads the products that were recorded, so that each is judged alone; where those are gone, the ones just made.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llm_core import artifacts
from llm_core.contract import BadInput
from llm_core.data.web.store import link_or_copy
from llm_core.pipeline import product_path
from llm_core.storage import products
from tasks import closure, record, settings_again, tracking
from tasks.history import MAKERS, History, Made
from tasks.lineage import known_product
from tasks.workspace import Workspace

Tell = Callable[[str], None]
LEFT_OUT = ("MLFLOW_TRACKING_URI", "GROUNDUP_EVENTS", "GROUNDUP_BUILD", record.REFRESH)
"""Variables that would tie a stage that is run again to the present run or tracker."""


@dataclass
class Again:
    """One reproduction: `folder` holds a checkout for each state of the code, `done` the products made so far."""

    history: History
    project: Path
    folder: Path
    chain: list[Made]
    tell: Tell
    done: dict[str, Path] = field(default_factory=dict)

    def run(self, only: Made | None) -> list[dict[str, Any]]:
        """Build the products of the chain, or one of them; a row for each."""
        rows = []
        for made in self.chain:
            if made.product != "raw" and only in (None, made):
                rows.append(self._product(made))
        return rows

    def _product(self, made: Made) -> dict[str, Any]:
        began = time.monotonic()
        row = MAKERS[made.product]
        about: dict[str, Any] = {"product": made.product, "run": made.run, "digest": made.digest, "commit": made.commit}
        root, changed = self._checkout(made)
        missing = [need for need in row.needs if not self._lay(made, need, root)]
        if missing:
            self.tell(f"  {made.product}: {' and '.join(missing)} of that time are neither cached nor made again")
            return about | {"again": None, "identical": None, "missing": missing}
        self._settings(made, root)
        unlike = sorted(path for path in row.files.values()
                        if path in made.inputs and closure.path_digest(root / path) != made.inputs[path])  # fmt: skip
        self.tell(f"  {made.product}: {row.verb} runs at {made.commit[:10]}{' with its changes' if changed else ''}")
        self._stage(row.verb, root)
        product = root / product_path(made.product)
        again = artifacts.digest(product)
        self.done[made.digest] = product
        about |= {"again": again, "identical": again == made.digest, "changes": changed, "files_unlike": unlike}
        about["differs"] = [] if again == made.digest else self._differing(made, product)
        about["seconds"] = round(time.monotonic() - began, 1)
        self.tell(f"  {made.product}: {'byte-identical' if about['identical'] else 'differs'}")
        return about

    def _checkout(self, made: Made) -> tuple[Path, bool]:
        """(the workspace with the code of that run, whether a difference from the commit was laid over it)."""
        if not made.commit:
            raise BadInput(f"reproduce: run {made.run} of {made.product} recorded no commit; its code is not known")
        diff = self._artifact(made, "code.diff") if made.code_differs else b""
        if made.code_differs and not diff:
            raise BadInput(f"reproduce: the changes that run {made.run} had over {made.commit[:10]} were not kept")
        name = made.commit[:10] + (f"-{hashlib.sha256(diff).hexdigest()[:6]}" if diff else "")
        tree = self.folder / name
        ready = self.folder / f"{name}.ready"
        if not ready.is_file():
            _clone(self.project, made.commit, diff, tree)
            ready.touch()
        return tree / _git(self.project, "rev-parse", "--show-prefix").decode().strip(), bool(diff)

    def _artifact(self, made: Made, name: str) -> bytes:
        if not any(entry.path == name for entry in self.history.client.list_artifacts(made.run)):
            return b""
        with tempfile.TemporaryDirectory() as folder:
            return Path(self.history.client.download_artifacts(made.run, name, folder)).read_bytes()

    def _lay(self, made: Made, need: str, root: Path) -> bool:
        """Give the workspace a product that the run read, whole and checked; whether it could be had."""
        target = root / product_path(need)
        digest = made.needs.get(need, "")
        if (target / artifacts.MANIFEST).is_file() and artifacts.digest(target) == digest:
            return True
        one = next((known for known in self.chain if known.digest == digest), None)
        files = self.history.files(one, self.chain) if one else None
        if files is None and (again := self.done.get(digest)):
            files = {path.relative_to(again).as_posix(): path for path in again.rglob("*") if path.is_file()}
        if files is None:
            return False
        _place(files, target)
        return True

    def _settings(self, made: Made, root: Path) -> None:
        """Give the workspace's params.yaml the settings of the run. Raises `BadInput` if they cannot be read back."""
        report = self._artifact(made, "report.json")
        recorded = json.loads(report)["params"] if report else dict(made.params)
        command = [sys.executable, "-P", str(Path(settings_again.__file__)), MAKERS[made.product].verb]
        done = subprocess.run(
            command, cwd=root, env=_environment(root), input=json.dumps(recorded), capture_output=True, text=True
        )
        if done.returncode:
            raise BadInput(f"reproduce: run {made.run}: {done.stderr.strip().splitlines()[-1]}")

    def _stage(self, verb: str, root: Path) -> None:
        log = root / ".groundup" / "logs" / f"{verb}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "wb") as output:
            done = subprocess.run(
                [sys.executable, "-m", "tasks.run", verb], cwd=root, env=_environment(root), stdin=subprocess.DEVNULL,
                stdout=output, stderr=subprocess.STDOUT,
            )  # fmt: skip
        if done.returncode:
            last = (log.read_text(errors="replace").strip().splitlines() or ["ended without a word"])[-1]
            raise RuntimeError(f"reproduce: {verb}: {last} (log: {log})")

    def _differing(self, made: Made, product: Path) -> list[str]:
        """Names of the files that are not as they were, where the product of that time is still at hand."""
        files = self.history.files(made, self.chain)
        if files is None:
            return []
        before = json.loads(files[artifacts.MANIFEST].read_bytes())["files"]
        now = artifacts.read_manifest(product)["files"]
        named = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
        return named or [artifacts.MANIFEST]


def reproduce(space: Workspace, target: str, *, only: bool, tell: Tell) -> dict[str, Any]:
    """Build the product that `target` means (a run, digest, product, alias or experiment), with all that led to it.

    With `only` just that product, from the inputs that were recorded. Raises `BadInput` if the target is unknown, or
    what it would be built from was not recorded.
    """
    uri = tracking.tracking_uri(space.project)
    if uri is None:
        raise BadInput("past runs are read from MLflow, and no tracking server is running; start it with `groundup up`")
    history = History(space, uri)
    made = known_product(history, space, target, uri)
    if made is None:
        raise BadInput(f"reproduce: {target!r} is no run, product, alias or experiment known here")
    if made.product == "raw":
        raise BadInput("reproduce: raw was fetched, and the web has changed since; name what was made from it")
    chain = history.chain(made)
    folder = space.project / "runs" / f"reproduce-{made.digest[:12]}"
    folder.mkdir(parents=True, exist_ok=True)
    again = Again(history, space.project, folder, chain, tell)
    rows = again.run(made if only else None)
    then = again._artifact(made, "versions.json")
    now = record.versions()
    found = {
        "target": made.digest, "product": made.product, "folder": str(folder), "products": rows,
        "identical": all(row["identical"] for row in rows),
        "versions": _versions(json.loads(then) if then else {}, now),
    }  # fmt: skip
    artifacts.write_atomic(folder / "reproduction.json", artifacts.dump_json(found))
    return found


def _versions(then: Mapping[str, str], now: Mapping[str, str]) -> dict[str, list[str]]:
    """Packages whose version is another than then: [then, now]."""
    return {name: [version, now.get(name, "absent")] for name, version in then.items() if now.get(name) != version}


def _place(files: Mapping[str, Path], target: Path) -> None:
    """Link a product's files to a workspace, and check them against their manifest; it appears whole or not at all."""
    staging = target.with_name(f".{target.name}.laid")
    for folder in (staging, target):
        shutil.rmtree(folder, ignore_errors=True)
    stored = {name: files[name] for name in (artifacts.MANIFEST, products.POINTER) if products.POINTER in files}
    for name, path in (stored or files).items():
        (staging / name).parent.mkdir(parents=True, exist_ok=True)
        link_or_copy(path.resolve(), staging / name)
    products.verify(staging)
    staging.rename(target)


def _environment(root: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in LEFT_OUT}
    return kept | {"PYTHONPATH": str(root)}


def _clone(project: Path, commit: str, diff: bytes, tree: Path) -> None:
    """A checkout of a commit, with a difference laid over it; what a killed attempt left is replaced."""
    shutil.rmtree(tree, ignore_errors=True)
    repository = _git(project, "rev-parse", "--show-toplevel").decode().strip()
    try:
        _git(project, "cat-file", "-e", f"{commit}^{{commit}}")
    except BadInput:
        raise BadInput(f"reproduce: commit {commit[:10]} is not in {repository}") from None
    _git(project, "clone", "--quiet", "--shared", "--no-checkout", repository, str(tree))
    _git(tree, "checkout", "--quiet", "--detach", commit)
    if diff:
        _git(tree, "apply", "--whitespace=nowarn", "-", data=diff)


def _git(folder: Path, *arguments: str, data: bytes | None = None) -> bytes:
    """Git's answer. Raises `BadInput` with its own words."""
    try:
        done = subprocess.run(["git", "-C", str(folder), *arguments], input=data, capture_output=True, check=False)
    except FileNotFoundError:
        raise BadInput("reproduce: git is not installed") from None
    if done.returncode:
        raise BadInput(f"reproduce: git {arguments[0]}: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout

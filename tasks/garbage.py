"""`groundup gc`: give back the disk that old experiments and products take.

What stays: everything that a workspace has checked out (its dvc.lock), the chains of products that lead to champion,
previous and candidate, and whatever is younger than the days asked for. What goes: experiments that nobody touched for
so long, and then, from the DVC cache, every product and file that nothing which stays needs; downloaded models and
repeated scores that belong to no alias; resume points of work that was given up. MLflow's records are left alone: they
are the history, and the registered models in them can still be served.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml

from llm_core import artifacts
from llm_core.contract import BadInput
from tasks.history import History, cache_of, cached
from tasks.lineage import ALIASES
from tasks.registry import Registry
from tasks.session import hold
from tasks.workspace import Workspace, workspaces

TOUCHED = ("params.yaml", "dvc.lock", "reports/*.json", ".groundup/events/*.jsonl")
"""What a run in an experiment writes: the newest of them is when it was last used."""
_OBJECT = re.compile(r"[0-9a-f]{30}(\.dir)?")


@dataclass
class Rubbish:
    """What goes. `objects`: files of the DVC cache; `products`: how many listings are among them."""

    experiments: list[Path] = field(default_factory=list)
    objects: list[Path] = field(default_factory=list)
    products: int = 0
    downloads: list[Path] = field(default_factory=list)
    resume_points: list[Path] = field(default_factory=list)

    def size(self) -> int:
        """Bytes that the disk gets back: a file that stays under another name gives nothing."""
        seen: dict[tuple[int, int], list[int]] = {}
        for path in (*self.experiments, *self.objects, *self.downloads, *self.resume_points):
            for file in [path] if path.is_file() else path.rglob("*"):
                if file.is_file() and not file.is_symlink():
                    stat = file.stat()
                    entry = seen.setdefault((stat.st_dev, stat.st_ino), [stat.st_size, stat.st_nlink])
                    entry[1] -= 1
        return sum(size for size, names in seen.values() if names <= 0)


def collect(space: Workspace, uri: str, *, days: float, dry_run: bool) -> dict[str, Any]:
    """Find what may go, and remove it unless `dry_run`; what it is, as the command's JSON.

    `uri` is MLflow's address: without the registry nobody knows which data made the champion. Raises `BadInput` while
    something works in a workspace.
    """
    before = time.time() - 86_400 * days
    with ExitStack() as stack:
        for one in workspaces(space):
            stack.enter_context(hold(one, "collect when it has ended"))
            _refuse_while_dvc_works(one)
        found = _rubbish(space, uri, before)
        facts = {
            "dry_run": dry_run,
            "bytes": found.size(),
            "experiments": [path.name for path in found.experiments],
            "products": found.products,
            "objects": len(found.objects),
            "downloads": len(found.downloads),
            "resume_points": len(found.resume_points),
        }
        if not dry_run:
            for folder in (*found.experiments, *found.downloads, *found.resume_points):
                shutil.rmtree(folder)
            for path in sorted(found.objects, key=lambda path: path.suffix != ".dir"):
                path.unlink()  # listings first: one without its files would be restored in part
    return facts


def _rubbish(space: Workspace, uri: str, before: float) -> Rubbish:
    found = Rubbish(experiments=[one.root for one in workspaces(space)[1:] if _last_used(one.root) < before])
    staying = [one for one in workspaces(space) if one.root not in found.experiments]
    registry, history = Registry(uri), History(space, uri)
    versions = [version for alias in ALIASES if (version := registry.get(alias))]
    chains = [history.chain(made) for version in versions if (made := history.find(version.digest))]
    digests = {one.digest for chain in chains for one in chain} | {version.scores for version in versions}
    digests |= {version.digest for version in versions}
    cache = cache_of(space)
    kept = set(_kept(cache, {address for one in staying for address in _addresses(one)}, digests, before))
    for path in sorted(cache.glob("??/*")):
        if path not in kept and _OBJECT.fullmatch(path.name) and path.stat().st_mtime < before:
            found.objects.append(path)
            found.products += path.suffix == ".dir"
    for one in staying:
        inside = one.root / ".groundup"
        found.downloads += [path for path in inside.glob("registry/*") if path.is_dir() and path.name not in digests]
        found.downloads += [path for path in inside.glob("rescored/*") if _changed(path) < before]
        found.resume_points += [path for path in inside.glob("scratch/*") if _newest(path.rglob("*")) < before]
    return found


def _addresses(space: Workspace) -> Iterator[str]:
    """What DVC calls the products and files of a workspace."""
    lock = space.root / "dvc.lock"
    stages = (yaml.safe_load(lock.read_text()) or {}).get("stages", {}) if lock.is_file() else {}
    for stage in stages.values():
        for entry in (*stage.get("outs", []), *stage.get("deps", [])):
            if "md5" in entry:
                yield entry["md5"]


def _kept(cache: Path, addresses: set[str], digests: set[str], before: float) -> Iterator[Path]:
    """Objects that stay: of these addresses, of products with these digests, and of what is younger."""
    yield from (cache / address[:2] / address[2:] for address in addresses)
    for listing in cache.glob("??/*.dir"):
        address = listing.parent.name + listing.name
        files = cached(cache, address)
        mine = bool(files) and artifacts.sha256(files[artifacts.MANIFEST]) in digests
        if address in addresses or mine or _changed(listing) >= before:
            yield listing
            yield from (cache / entry["md5"][:2] / entry["md5"][2:] for entry in json.loads(listing.read_text()))


def _last_used(root: Path) -> float:
    return _newest(path for pattern in TOUCHED for path in root.glob(pattern))


def _newest(paths: Iterable[Path]) -> float:
    return max(map(_changed, paths), default=0.0)


def _changed(path: Path) -> float:
    return path.lstat().st_mtime


def _refuse_while_dvc_works(space: Workspace) -> None:
    """`dvc repro` by hand takes no lock of ours, but writes down who reads and writes what."""
    path = space.root / ".dvc" / "tmp" / "rwlock"
    text = path.read_text() if path.is_file() else ""
    locks = json.loads(text or "{}")
    readers = [reader for every in locks.get("read", {}).values() for reader in every]
    for holder in (*locks.get("write", {}).values(), *readers):
        if psutil.pid_exists(holder["pid"]):
            raise BadInput(f"{space.root} is in use by `{holder['cmd']}`; collect when it has ended")

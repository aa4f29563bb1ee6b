"""Bytes that changed by themselves: a product is looked at before it is read and after DVC has put it in its place.

DVC takes a file whose time and size did not change for unchanged, and an object of its cache that is write-protected
for whole: it would link a damaged object into a workspace, also over a product that was made a moment before. A
product's own manifest knows better, and its maker's report knows the manifest.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from pathlib import Path

from llm_core import artifacts
from llm_core.artifacts import BrokenProduct
from llm_core.pipeline import PIPELINE, Stage
from llm_core.storage import products
from tasks.history import cache_of
from tasks.workspace import Workspace


def check(space: Workspace, product: str) -> None:
    """Read a product's every byte. Raises `BrokenProduct`, with what mends it."""
    maker = next(row for row in PIPELINE if row.makes == product)
    mend = f"`groundup run {maker.verb} --force {maker.verb}` makes it anew"
    folder = space.product(product)
    try:
        products.verify(folder)
    except BrokenProduct as error:
        raise BrokenProduct(f"{error}; {mend}") from error
    report = space.read_report(maker.verb)
    if report is not None and report["product"] != artifacts.digest(folder):
        raise BrokenProduct(f"{folder / artifacts.MANIFEST}: not the one that {maker.verb} wrote; {mend}")


def check_copy(folder: Path, digest: str) -> None:
    """Compare a model that was downloaded with what was registered; cards may stand in it beside that.

    Raises `BrokenProduct` naming what differs.
    """
    if artifacts.digest(folder) != digest:
        raise BrokenProduct(f"{folder / artifacts.MANIFEST}: not that of the model that was registered, {digest[:12]}")
    for name, entry in artifacts.read_manifest(folder)["files"].items():
        path = folder / name
        if name != "README.md" and (not path.is_file() or artifacts.sha256(path) != entry["sha256"]):
            raise BrokenProduct(f"{path}: its bytes differ from those that were registered; the store was damaged")


def check_inputs(space: Workspace, stage: Stage) -> None:
    """Raise `BrokenProduct` unless everything that the stage reads is what its maker wrote."""
    for need in stage.needs:
        check(space, need)


def mended(space: Workspace, stage: Stage) -> bool:
    """Whether the stage's product was damaged and is gone now, its bad objects in DVC's cache with it."""
    try:
        check(space, stage.makes)
    except BrokenProduct:
        drop_damaged(space, stage)
        shutil.rmtree(space.product(stage.makes), ignore_errors=True)
        space.report(stage.verb).unlink(missing_ok=True)
        return True
    return False


def drop_damaged(space: Workspace, stage: Stage, *, listings_only: bool = False) -> list[Path]:
    """Remove from DVC's cache what no longer has the MD5 that it is named by, of this stage's outputs; what it was.

    An object that is there is never written again, so a damaged one would outlive every rerun. With `listings_only`
    the files of a product are left alone, which costs nothing: DVC sees that a listing is damaged and runs the stage,
    but it would leave the listing as it is, and the stage stale for ever.
    """
    cache = cache_of(space)
    removed = []
    for address in _addresses(space, stage):
        listing = cache / address[:2] / address[2:]
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):  # a damaged listing names nothing
            named = json.loads(listing.read_bytes()) if address.endswith(".dir") and not listings_only else []
            for entry in named:
                removed += _drop_if_damaged(cache / entry["md5"][:2] / entry["md5"][2:], entry["md5"])
        removed += _drop_if_damaged(listing, address.removesuffix(".dir"))
    return removed


def _drop_if_damaged(path: Path, md5: str) -> list[Path]:
    if not path.is_file():
        return []
    with open(path, "rb") as handle:
        if hashlib.file_digest(handle, "md5").hexdigest() == md5:
            return []
    path.unlink()
    return [path]


def _addresses(space: Workspace, stage: Stage) -> list[str]:
    """What DVC calls the stage's outputs, as dvc.lock has them."""
    import yaml

    lock = space.root / "dvc.lock"
    content = (yaml.safe_load(lock.read_text()) if lock.is_file() else None) or {}
    outs = content.get("stages", {}).get(stage.verb, {}).get("outs", [])
    return [entry["md5"] for entry in outs if "md5" in entry]

"""`groundup forget --purge`: what the forget list names leaves the disk at once, not only the next products.

Out of the crawl stores go pages and addresses; out of the DVC cache the files that hold the text, in whatever run they
were made; out of every workspace the products and resume points that hold it; past runs that were reproduced go whole.
The next run makes the products anew. Which documents a purged corpus had is written down first, without their words, so
that its models keep their lineage.
"""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from llm_core import artifacts
from llm_core.contract import BadInput
from llm_core.data import forget_list
from llm_core.data.forget_list import Forgotten
from llm_core.data.forget_raw import pages_held, rows_held, segment_holds
from llm_core.data.forget_search import Search
from llm_core.data.forget_store import purge_stores
from llm_core.storage import products
from tasks.forget import LIST, Place, laid_out, places
from tasks.lineage import keep
from tasks.session import hold
from tasks.stores import seed_stores
from tasks.workspace import Workspace, workspaces

KINDS = ("raw", "corpus", "shards", "votes", "scores")
"""Products that hold text."""
RESUMED = ("acquire", "clean", "tokenize", "collect", "evaluate")
"""Stages whose resume points hold text."""


def purge(space: Workspace) -> dict[str, Any]:
    """Remove everything that the list names from crawl stores, DVC cache and workspaces; what went, in words.

    Raises `BadInput` while a run is under way in one of the workspaces.
    """
    listed = forget_list.read(space.project / LIST)
    if not listed:
        raise BadInput(f"forget: {LIST} names nothing")
    with ExitStack() as stack:
        for one in workspaces(space):
            stack.enter_context(hold(one, "purge when it has ended"))
        for one in workspaces(space):
            if (one.product("raw") / artifacts.MANIFEST).is_file():
                seed_stores(one)  # else a clone that never crawled would have to ask for all its pages
        removed, objects = [], 0
        every = list(places(space, KINDS))
        held = [(place, names) for place in every if (names := holding(place, listed))]
        raws = [place.files for place in every if place.kind == "raw"]
        for place in {place.digest: place for place, _ in held if place.kind == "corpus"}.values():
            keep(space.project, place.digest, place.files, raws, listed)
        for place, names in held:
            removed.append({"where": place.name, "files": names})
            objects += _remove(place, names)
        stores = sum(purge_stores(folder, listed) for folder in _stores(space))
        scratch = sum(_drop_scratch(one) for one in workspaces(space))
        again = sorted((space.project / "runs").glob("reproduce-*"))
        for folder in again:  # they hold what was made of the text once more, and links to the cache's files
            shutil.rmtree(folder)
    return {
        "products": removed, "cache_objects": objects, "store_pages": stores, "resume_points": scratch,
        "reproductions": len(again),
    }  # fmt: skip


def _stores(space: Workspace) -> set[Path]:
    folders = set()
    for one in workspaces(space):
        config = one.config("acquire")
        folders.add((one.root / getattr(config, "store", ".groundup/crawl")).resolve())
    return folders


def holding(place: Place, listed: Forgotten) -> list[str]:
    """Names of the files of a product that hold text that the list names."""
    match place.kind:
        case "raw":
            return _of_raw(place, listed)
        case "corpus":
            return [name for name, path in sorted(place.files.items())
                    if name.endswith(".parquet") and _row_told(path, listed)]  # fmt: skip
        case "shards":
            with laid_out(place) as folder:
                _, hits = Search(listed).shards(folder)
            streams = tuple({f"{hit.file}{end}" for hit in hits for end in (".", "-")})
            return sorted(name for name in place.files if name.startswith(streams) and name.endswith(".bin"))
    search = Search(listed)
    return [name for name, path in sorted(place.files.items()) if name.endswith(".parquet") and search.table(path)]


def _of_raw(place: Place, listed: Forgotten) -> list[str]:
    found = []
    urls: set[str] = set()
    for name, path in sorted(place.files.items()):
        if name.endswith("/pages.parquet"):
            held, _ = pages_held(path, listed)
            urls |= held
            found += [name] if held else []
        elif name.endswith(".parquet") and rows_held(path, listed):
            found.append(name)
    segments = [(name, path) for name, path in sorted(place.files.items()) if name.endswith(".warc.gz")]
    return [*found, *(name for name, path in segments if segment_holds(path, urls, listed))]


def _row_told(path: Path, listed: Forgotten) -> bool:
    """Whether a file of a corpus tells text that is listed; that something was dropped as forgotten tells none."""
    if "excerpt" not in pq.read_schema(path).names:
        return rows_held(path, listed) > 0
    with pq.ParquetFile(path) as file:
        rows = (row for batch in file.iter_batches(1_000) for row in batch.to_pylist())
        return any(row["excerpt"] and listed.holds(row["url"], row["digest"], row["cluster"]) for row in rows)


def _remove(place: Place, names: list[str]) -> int:
    """Remove a workspace's product whole; of a cached one its listing and the files that hold the text."""
    products.discard(place.files)
    if place.folder:
        shutil.rmtree(place.folder)
        return 0
    assert place.listing is not None
    place.listing.unlink()  # first: a listing without its files would be restored in part
    for name in names:
        path = place.files[name]
        path.unlink(missing_ok=True)  # products may share a file
    return 1 + len(names)


def _drop_scratch(space: Workspace) -> int:
    """Remove the resume points that hold text, but for the records of runs."""
    folders = [path for verb in RESUMED for path in (space.root / ".groundup" / "scratch").glob(f"{verb}-*")]
    for folder in folders:
        shutil.rmtree(folder)
    return len(folders)

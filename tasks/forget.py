"""`groundup forget`: list what must never be learned again, say which models learned it, and show that it is gone.

The list is a tracked file that acquire and clean read, so that the next run makes raw, corpus and shards without it.
What is forgotten is looked up in every corpus that a workspace or the DVC cache holds: its copies under other addresses
are listed with it, and passages by which shards can be searched when the text is nowhere any longer.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from llm_core import artifacts
from llm_core.contract import BadInput
from llm_core.data import forget_list, tables
from llm_core.data.forget_list import Forgotten
from llm_core.data.forget_search import Search, marks
from llm_core.pipeline import PIPELINE
from llm_core.storage import products
from tasks import tracking
from tasks.history import History, cache_of, cached
from tasks.lineage import ALIASES, SPOKEN, TAUGHT, models_of
from tasks.registry import Registry
from tasks.workspace import Workspace, workspaces

LIST = "forget.txt"


@dataclass(frozen=True)
class Place:
    """A product where it lies: `folder` in a workspace, or `listing`, its object in the DVC cache."""

    kind: str
    digest: str
    files: Mapping[str, Path]
    folder: Path | None = None
    listing: Path | None = None

    @property
    def name(self) -> str:
        """Where it is, in words."""
        return str(self.folder) if self.folder else f"DVC cache: {self.kind} {self.digest[:12]}"


@dataclass
class Found:
    """What of the corpora is meant: texts by document id, ids, raw digests, and the corpora that hold some of it."""

    texts: dict[str, list[str]] = field(default_factory=dict)
    ids: set[str] = field(default_factory=set)
    digests: set[str] = field(default_factory=set)
    corpora: set[str] = field(default_factory=set)


def places(space: Workspace, kinds: Iterable[str]) -> Iterator[Place]:
    """Products of these kinds wherever they lie: in workspaces, then in the DVC cache."""
    for one in workspaces(space):
        yield from standing(one, kinds)
    cache = cache_of(space)
    for listing in sorted(cache.glob("??/*.dir")):
        files = cached(cache, listing.parent.name + listing.name)
        if not files:
            continue
        manifest = files[artifacts.MANIFEST]
        kind = json.loads(manifest.read_text())["kind"]
        if kind in kinds:
            yield Place(kind, artifacts.sha256(manifest), products.laid_open(files), listing=listing)


def standing(space: Workspace, kinds: Iterable[str]) -> Iterator[Place]:
    """Products of these kinds that stand in this workspace."""
    for kind in kinds:
        folder = space.product(kind)
        if (folder / artifacts.MANIFEST).is_file():
            files = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
            yield Place(kind, artifacts.digest(folder), products.laid_open(files), folder=folder)


def forget(space: Workspace, target: str) -> dict[str, Any]:
    """Put a URL, a host or a document (its id, or the digest of its raw row) on the list.

    What is told: the lines that are new, the documents that are meant, and the models that learned from them. Raises
    `BadInput` for a target that is none of these, and for a document that no corpus here has.
    """
    kind, value = forget_list.entry(forget_list.kind_of(target), target)
    meant = {
        "url": Forgotten(urls=frozenset([value])),
        "domain": Forgotten(domains=frozenset([value])),
        "document": Forgotten(documents=frozenset([value]), digests=frozenset([value])),
    }[kind]
    corpora = {place.digest: place for place in places(space, ["corpus"])}
    found = Found()
    for place in corpora.values():
        _find(place, meant, found)
    if kind == "document" and not found.ids:
        raise BadInput(f"forget: no corpus of a workspace or of the DVC cache holds the document {value}")
    lines = _lines(kind, value, found, corpora.values())
    new = _append(space.project / LIST, lines)
    models, where = affected(space, frozenset(found.corpora))
    return {
        "target": value, "kind": kind, "new_lines": new, "documents": sorted(found.ids),
        "corpora": sorted(found.corpora), "models": models, "models_from": where,
    }  # fmt: skip


def _find(place: Place, meant: Forgotten, found: Found) -> None:
    """Add what one corpus holds of what is meant: its documents, and copies of them that were dropped."""
    ids, digests = set(), set()
    for name in SPOKEN:
        for row in _rows(place, name):
            if meant.holds(row["url"], row["digest"], row["id"]):
                ids.add(row["id"])
                digests |= {row["digest"]} if meant.documents else set()
                found.texts[row["id"]] = _texts(row)
    dropped = list(_rows(place, "dropped"))
    ids |= {row["cluster"] for row in dropped if row["cluster"] and row["reason"] == "duplicate"
            and meant.holds(row["url"], row["digest"])}  # fmt: skip
    for row in _rows(place, "documents"):
        if {row["id"], row["cluster"]} & ids and row["id"] not in found.texts:
            ids.add(row["id"])
            digests.add(row["digest"])
            found.texts[row["id"]] = _texts(row)
    digests |= {row["digest"] for row in dropped if row["cluster"] in ids and not meant.names(row["url"])}
    found.ids |= ids
    found.digests |= digests - {None}
    if ids or any(meant.holds(row["url"], row["digest"]) for row in dropped):
        found.corpora.add(place.digest)


def _rows(place: Place, name: str) -> Iterator[dict[str, Any]]:
    for part in tables.in_order(name, place.files):
        with pq.ParquetFile(place.files[part]) as file:
            for batch in file.iter_batches(1_000):
                yield from batch.to_pylist()


def _texts(row: dict[str, Any]) -> list[str]:
    """What a row of a corpus says, part by part."""
    if "text" in row:
        return [row["text"] or ""]
    turns = [turn["content"] or "" for turn in row.get("messages") or row.get("prompt") or []]
    return [*turns, *(row[name] for name in ("chosen", "rejected") if row.get(name))]


def _lines(kind: str, value: str, found: Found, corpora: Iterable[Place]) -> list[str]:
    """The lines of the list that say it all."""
    ids = sorted(found.ids)
    others = (text for place in corpora for name in SPOKEN for row in _rows(place, name)
              if row["id"] not in found.ids for text in _texts(row))  # fmt: skip
    chosen = dict(zip(ids, marks([found.texts.get(key, []) for key in ids], others if ids else ()), strict=True))
    first = [] if kind == "document" else [forget_list.line_of(kind, value)]
    texts = [forget_list.line_of("document", key, chosen[key]) for key in ids]
    return [*first, *texts, *(forget_list.line_of("digest", digest) for digest in sorted(found.digests))]


def _append(path: Path, lines: list[str]) -> list[str]:
    """Add lines that the list does not have; those that were new. A second mention of a document adds nothing."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    known = {tuple(line.split()[:2]) for line in text.splitlines() if line.split()}
    new = [line for line in lines if tuple(line.split()[:2]) not in known]
    if new:
        ended = text if not text or text.endswith("\n") else f"{text}\n"
        artifacts.write_atomic(path, (ended + "".join(f"{line}\n" for line in new)).encode())
    return new


def affected(space: Workspace, corpora: frozenset[str]) -> tuple[list[dict[str, Any]], str]:
    """(the models that were made from these corpora, where that is known from).

    With a tracking server all that were ever made; without one those that stand in a workspace.
    """
    uri = tracking.tracking_uri(space.project)
    if uri is None:
        return list(_standing(space, corpora)), "the workspaces alone: no tracking server is running"
    registry = Registry(uri)
    aliases: dict[str, list[str]] = {}
    for alias in ALIASES:
        if version := registry.get(alias):
            aliases.setdefault(version.digest, []).append(alias)
    kept = ("product", "digest", "run", "ended", "workspace")
    return [
        {**{key: model[key] for key in kept}, "aliases": aliases.get(model["digest"], [])}
        for model in models_of(History(space, uri), corpora)
    ], "MLflow"


def _standing(space: Workspace, corpora: frozenset[str]) -> Iterator[dict[str, Any]]:
    for one in workspaces(space):
        reports = {row.makes: one.read_report(row.verb) for row in PIPELINE}
        if (reports["corpus"] or {}).get("product") in corpora:
            for product in TAUGHT:
                if report := reports[product]:
                    yield {"product": product, "digest": report["product"], "run": report["run"]["mlflow_run_id"],
                           "ended": report["run"]["ended"], "workspace": one.name, "aliases": []}  # fmt: skip


def prove(space: Workspace, *, everywhere: bool = True) -> dict[str, Any]:
    """Decode token shards and look for what the list names: in this workspace, or in every workspace and the cache.

    `found` says where something is still there; it is empty where the text is gone. Raises `BrokenProduct`.
    """
    listed = forget_list.read(space.project / LIST)
    search = Search(listed)
    rows = []
    seen: set[str] = set()
    for place in (places if everywhere else standing)(space, ["shards"]):
        if place.digest in seen:
            continue
        seen.add(place.digest)
        with laid_out(place) as folder:
            count, hits = search.shards(folder)
        rows.append(
            {"where": place.name, "shards": place.digest, "sequences": count, "hits": [asdict(h) for h in hits]}
        )
    return {
        "documents": len(listed.documents), "passages": len(listed.passages), "searched": rows,
        "found": [row["where"] for row in rows if row["hits"]],
    }  # fmt: skip


@contextmanager
def laid_out(place: Place) -> Iterator[Path]:
    """The product as a folder; of a cached one, a folder of links for the time being."""
    if place.folder:
        yield place.folder
        return
    with tempfile.TemporaryDirectory() as text:
        for name, path in place.files.items():
            link = Path(text) / name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path)
        yield Path(text)

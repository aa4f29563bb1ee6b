"""`groundup lineage`, `forget`, `reproduce` and `gc`: what was found and done, for a terminal."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

MOST = 20


def table_of(found: dict[str, Any]) -> list[str]:
    """Lines that say where a product came from, or what saw a document."""
    return _product_lines(found) if "chain" in found else _document_lines(found)


def _product_lines(found: dict[str, Any]) -> list[str]:
    lines = [f"{found['target']['product']} {found['target']['digest'][:12]}", ""]
    for one in found["chain"]:
        code = f"commit {one['commit'][:10]}{' + changes' if one['code_differs'] else ''}" if one["commit"] else ""
        inputs = ", ".join(f"{name} {digest[:8]}" for name, digest in sorted(one["inputs"].items())) or "-"
        lines.append(f"  {one['product']:<8} {one['digest'][:12]}  {one['ended']}  run {one['run'][:12]}  {code}")
        lines.append(f"           from {inputs}")
    splits = Counter((row["source"], row["split"], row["licence"] or "no licence") for row in found["documents"])
    lines += ["", f"{len(found['documents'])} documents"]
    lines += [
        f"  {count:>6}  {source}  {split}  {licence}" for (source, split, licence), count in sorted(splits.items())
    ]
    for row in found["documents"][:MOST]:
        lines.append(f"  {row['url']}  {_page(row)}")
    if len(found["documents"]) > MOST:
        lines.append(f"  and {len(found['documents']) - MOST} more; --json lists all")
    if votes := found["votes"]:
        told = ", ".join(f"{count} by {rater}" for rater, count in sorted(votes["raters"].items()))
        lines += ["", f"votes: {told}", *(f"  trace {trace}" for trace in votes["traces"][:MOST])]
    if found["absent"]:
        lines += ["", f"neither the workspace nor the DVC cache still holds: {', '.join(found['absent'])}"]
    return lines


def _document_lines(found: dict[str, Any]) -> list[str]:
    lines = [f"{len(found['documents'])} documents"]
    for row in found["documents"][:MOST]:
        lines.append(f"  {row['id'][:12]}  {row['url']}  {row['split']}  {_page(row)}")
    if talks := Counter((row["url"], row["split"]) for row in found["conversations"]):
        lines.append(f"{len(found['conversations'])} dialogues and preferences")
        lines += [f"  {count:>6}  {url}  {split}" for (url, split), count in talks.most_common(MOST)]
    for row in found["dropped"][:MOST]:
        lines.append(f"  dropped: {row['url']} ({row['reason']})")
    saw = [one for one in found["models"] if one["saw"]]
    lines += ["", f"{len(saw)} models saw them in training"]
    lines += [f"  {one['product']:<8} {one['digest'][:12]}  {one['ended']}  run {one['run'][:12]}" for one in saw]
    held = [one for one in found["models"] if not one["saw"]]
    lines += [f"  held out from: {one['product']} {one['digest'][:12]}" for one in held]
    return lines


def _page(row: dict[str, Any]) -> str:
    """What the crawl noted of a document's page."""
    robots = row["robots"] or "no robots meta"
    return f"fetched {row['fetched'] or 'unknown'}  {row['licence'] or 'no licence'}  {robots}"


def forget(
    project: Path, target: str | None, *, purge: bool, check: bool, as_json: bool, tell: Callable[[str], None]
) -> int:
    """List `target`, purge, search the shards, as asked; the exit code: 1 if a search found something."""
    from llm_core.contract import BadInput
    from tasks import forget as listing
    from tasks.purge import purge as purge_all
    from tasks.workspace import Workspace

    if target is None and not (purge or check):
        raise BadInput("forget: name a URL, a host or a document; or give --purge or --check")
    space = Workspace.at(project)
    done: dict[str, Any] = listing.forget(space, target) if target else {}
    if purge:
        done["purged"] = purge_all(space)
    if purge or check:
        done["proof"] = listing.prove(space)
    tell(json.dumps(done, indent=2) if as_json else "\n".join(_forget_lines(done)))
    return int(check and bool(done["proof"]["found"]))


def _forget_lines(done: dict[str, Any]) -> list[str]:
    lines: list[str] = []
    if "target" in done:
        lines = [
            f"forget.txt: {len(done['new_lines'])} new lines for {done['kind']} {done['target']}; "
            f"{len(done['documents'])} documents of {len(done['corpora'])} corpora",
            *(f"  learned it: {_model(model)}" for model in done["models"]),
            f"{len(done['models'])} models learned from them (known from {done['models_from']}); they keep what they "
            "learned until they are made anew",
        ]
    if purged := done.get("purged"):
        lines += [f"  removed {', '.join(row['files'])} of {row['where']}" for row in purged["products"]]
        lines.append(
            f"purged: {len(purged['products'])} products, {purged['cache_objects']} objects of the DVC cache, "
            f"{purged['store_pages']} pages of the crawl stores, {purged['resume_points']} resume points, "
            f"{purged['reproductions']} reproduced runs"
        )
    if proof := done.get("proof"):
        lines += [_searched(row) for row in proof["searched"]]
        what = f"{proof['documents']} documents and {proof['passages']} passages"
        result = "found, see above" if proof["found"] else "none holds any"
        lines.append(f"searched {len(proof['searched'])} sets of shards for {what}: {result}")
    else:
        lines.append("`groundup run` makes raw, corpus, shards and models without it; --check then searches the shards")
    return lines


def _searched(row: dict[str, Any]) -> str:
    kinds = Counter(hit["what"] for hit in row["hits"])
    found = ", ".join(f"{count} with a forgotten {what}" for what, count in sorted(kinds.items())) or "nothing found"
    return f"  {row['where']}: {row['sequences']} sequences decoded, {found}"


def _model(model: dict[str, Any]) -> str:
    aliases = f" ({', '.join(model['aliases'])})" if model["aliases"] else ""
    return f"{model['product']} {model['digest'][:12]}{aliases} of {model['workspace']}, {model['ended']}"


def reproduce(project: Path, run: str, *, only: bool, as_json: bool, tell: Callable[[str], None]) -> int:
    """Build a past run again; the exit code: 1 if a product is not byte-identical."""
    from tasks.reproduce import reproduce
    from tasks.workspace import Workspace

    found = reproduce(Workspace.at(project), run, only=only, tell=(lambda _: None) if as_json else tell)
    tell(json.dumps(found, indent=2) if as_json else "\n".join(_reproduced(found)))
    return int(not found["identical"])


def _reproduced(found: dict[str, Any]) -> list[str]:
    lines = [""]
    for row in found["products"]:
        said = "byte-identical" if row["identical"] else "could not be built" if row["again"] is None else "DIFFERS"
        lines.append(f"  {row['product']:<8} {row['digest'][:12]}  {said}")
        lines += [f"           {name} is not as it was" for name in row.get("differs", [])[:MOST]]
        lines += [f"           read another {name} than then" for name in row.get("files_unlike", [])]
    same = sum(bool(row["identical"]) for row in found["products"])
    lines += [f"{name} was {then}, is {now}" for name, (then, now) in sorted(found["versions"].items())]
    return [*lines, f"{same} of {len(found['products'])} products are byte-identical; they lie in {found['folder']}"]


def collect(project: Path, days: float, *, dry_run: bool, as_json: bool) -> str:
    """Remove what is old and needed by nothing; what went, in words or as JSON."""
    from flows import running
    from tasks import garbage
    from tasks.workspace import Workspace

    facts = garbage.collect(Workspace.at(project), running.tracking_server(project), days=days, dry_run=dry_run)
    if as_json:
        return json.dumps(facts, indent=2)
    names = f" ({', '.join(facts['experiments'])})" if facts["experiments"] else ""
    return (
        f"{'would remove' if dry_run else 'removed'}: {len(facts['experiments'])} experiments{names}, "
        f"{facts['products']} products ({facts['objects']} objects) of the DVC cache, {facts['downloads']} downloaded "
        f"models and scores, {facts['resume_points']} resume points; {facts['bytes'] / 1e6:,.1f} MB"
    )

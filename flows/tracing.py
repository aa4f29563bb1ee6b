"""`groundup lineage`: what `tasks.lineage` found, for a terminal."""

from __future__ import annotations

from collections import Counter
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
        robots = row["robots"] or "no robots meta"
        lines.append(
            f"  {row['url']}  fetched {row['fetched'] or 'unknown'}  {row['licence'] or 'no licence'}  {robots}"
        )
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
        lines.append(f"  {row['id'][:12]}  {row['url']}  {row['split']}  {_licence(row)}")
    for row in found["dropped"][:MOST]:
        lines.append(f"  dropped: {row['url']} ({row['reason']})")
    saw = [one for one in found["models"] if one["saw"]]
    lines += ["", f"{len(saw)} models saw them in training"]
    lines += [f"  {one['product']:<8} {one['digest'][:12]}  {one['ended']}  run {one['run'][:12]}" for one in saw]
    held = [one for one in found["models"] if not one["saw"]]
    lines += [f"  held out from: {one['product']} {one['digest'][:12]}" for one in held]
    return lines


def _licence(row: dict[str, Any]) -> str:
    return row["licence"] or "no licence"

"""Local files as a source: txt, md and html are one document each; jsonl and parquet hold rows."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from llm_core.contract import BadInput
from llm_core.data.extract import decode
from llm_core.data.sources.rows import Columns, shape

WHOLE = {".txt": "text/plain", ".md": "text/markdown", ".html": "text/html", ".htm": "text/html"}
ROWS = (".jsonl", ".jsonl.gz", ".parquet")


def rows(paths: Iterable[str], holds: str, columns: Columns) -> Iterator[dict[str, Any]]:
    """Raw rows of all files, in the order of their names. `holds` is text, dialogues or preferences.

    Raises `BadInput` naming the path that matches nothing, or the file and line that cannot be read.
    """
    for path in find(paths):
        reader = _reader(path)
        if reader is not None:
            yield from shape(reader(path), holds, columns)
        elif holds == "text":
            yield _whole(path)


def find(patterns: Iterable[str]) -> list[Path]:
    """The files of known types that the patterns name, each once, sorted."""
    found: set[Path] = set()
    for pattern in patterns:
        path = Path(pattern)
        if path.is_file():
            matches = [path]
        elif path.is_dir():
            matches = [p for p in path.rglob("*") if p.is_file() and _known(p)]
        else:
            root = Path(path.anchor) if path.is_absolute() else Path()
            matches = [p for p in root.glob(str(path.relative_to(root))) if p.is_file() and _known(p)]
        if not matches:
            raise BadInput(
                f"acquire.sources.paths: {pattern!r} matches no file of type txt, md, html, jsonl or parquet"
            )
        found.update(matches)
    return sorted(found)


def _known(path: Path) -> bool:
    return path.suffix.lower() in WHOLE or path.name.lower().endswith(ROWS)


def _reader(path: Path) -> Callable[[Path], Iterator[Mapping[str, Any]]] | None:
    name = path.name.lower()
    if name.endswith((".jsonl", ".jsonl.gz")):
        return _json_lines
    return _parquet if name.endswith(".parquet") else None


def _json_lines(path: Path) -> Iterator[Mapping[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    row = json.loads(line)
                except ValueError as error:
                    raise BadInput(f"{path}, line {number}: no JSON ({error})") from error
                if not isinstance(row, dict):
                    raise BadInput(f"{path}, line {number}: a JSON object is needed, not {type(row).__name__}")
                yield row


def _parquet(path: Path) -> Iterator[Mapping[str, Any]]:
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(1_000):
                yield from batch.to_pylist()
    except (OSError, ValueError) as error:
        raise BadInput(f"{path}: no readable Parquet file ({error})") from error


def _whole(path: Path) -> dict[str, Any]:
    kind = WHOLE.get(path.suffix.lower(), "text/plain")
    title = None if kind == "text/html" else path.stem
    return {"url": path.as_posix(), "title": title, "text": decode(path.read_bytes()), "content_type": kind}

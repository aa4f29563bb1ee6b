"""Products on disk: a directory that appears whole or not at all.

A product is written into a temporary directory beside its place; the manifest, which lists every file with its size
and SHA-256, is written last; everything is flushed to disk; then the directory is renamed. So a directory that
holds a manifest is whole, whatever was killed and whenever. Products hold no clock, host name or run id: the same
inputs give the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from llm_core.contract import BadInput

MANIFEST = "manifest.json"
Entry = Mapping[str, Any]
"""What a manifest says of a file: `bytes` and `sha256`."""


class Keeper(Protocol):
    """Where the files of a product lie if not beside its manifest."""

    def take(self, folder: Path) -> Mapping[str, Entry]:
        """Move the files out of the folder; the entries of all files of the product by name."""
        ...

    def publish(self, manifest: bytes) -> None:
        """Called once everything else is done: from now on the product is whole."""
        ...


class BrokenProduct(BadInput):
    """A product that is absent, half-made or altered."""


@contextmanager
def new_product(
    out: Path, kind: str, facts: Mapping[str, Any] | None = None, keeper: Keeper | None = None
) -> Iterator[Path]:
    """Yield an empty directory to fill; when the block ends without an error it becomes `out`, with a manifest.

    `facts` (counts, algorithm names) may be filled until the block ends; they stand in the manifest under "facts".
    An existing `out` is replaced. A `keeper` takes the files elsewhere; `out` then holds the manifest, the same bytes,
    and what the keeper leaves beside it.
    """
    staging = out.with_name(f".{out.name}.part")
    _remove(staging)
    staging.mkdir(parents=True)
    try:
        yield staging
    except BaseException:
        _remove(staging)
        raise
    _seal(staging, kind, facts or {}, keeper)
    _replace(staging, out)


def _seal(folder: Path, kind: str, facts: Mapping[str, Any], keeper: Keeper | None) -> None:
    kept = keeper.take(folder) if keeper else None
    folders, paths = [], []
    for place, _, names in os.walk(folder, onerror=_refuse):
        folders.append(Path(place))
        paths += [path for name in names if (path := Path(place, name)).is_file()]
    files = {}
    for path in sorted(paths):
        path.chmod(0o644)
        files[path.relative_to(folder).as_posix()] = {"bytes": path.stat().st_size, "sha256": sha256(path)}
        _sync(path)
    manifest = dump_json({"kind": kind, "facts": facts, "files": files if kept is None else kept})
    write_atomic(folder / MANIFEST, manifest)
    if keeper:
        keeper.publish(manifest)
    for directory in reversed(folders):
        _sync(directory)


def _refuse(error: OSError) -> None:
    raise error  # a folder that cannot be read would be missing from the manifest, and nobody would notice


def _replace(staging: Path, out: Path) -> None:
    old = out.with_name(f".{out.name}.old")
    _remove(old)
    if out.exists():
        out.rename(old)
    staging.rename(out)
    _sync(out.parent)
    _remove(old)


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def dump_json(value: Any) -> bytes:
    """JSON with sorted keys and a final newline: the same value gives the same bytes."""
    return (json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False) + "\n").encode()


def write_atomic(path: Path, data: bytes) -> None:
    """Write `data` to `path` so that a reader sees the old bytes or the new ones, never a part."""
    partial = path.with_name(f".{path.name}.part")
    with open(partial, "wb") as handle:
        handle.write(data)
        handle.flush()
        os.fsync(handle.fileno())
    os.replace(partial, path)


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def read_manifest(product: Path, kind: str | None = None) -> dict[str, Any]:
    """The manifest of a product. Raises `BrokenProduct` if there is none, or if it is of another kind."""
    path = product / MANIFEST
    if not path.is_file():
        raise BrokenProduct(f"{product}: no whole product here (no {MANIFEST}); run the stage that makes it")
    try:
        manifest: dict[str, Any] = json.loads(path.read_text())
        known, _ = manifest["kind"], manifest["facts"]
        _ = [(entry["bytes"], entry["sha256"]) for entry in manifest["files"].values()]
    except (ValueError, RecursionError) as error:
        raise BrokenProduct(f"{path}: it is no JSON; it was damaged after it was written") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise BrokenProduct(f"{path}: it is no manifest; it was damaged after it was written") from error
    if kind is not None and known != kind:
        raise BrokenProduct(f"{product}: holds {known!r}, not {kind!r}")
    if outside := next((n for n in manifest["files"] if n.startswith("/") or ".." in n.split("/") or "\0" in n), None):
        raise BrokenProduct(f"{path}: it lists {outside!r}, which is no file of the product")
    return manifest


def verify(product: Path) -> None:
    """Compare every file with the manifest. Raises `BrokenProduct` naming the first file that differs."""
    for name, entry in read_manifest(product)["files"].items():
        path = product / name
        if not path.is_file():
            raise BrokenProduct(f"{path}: missing, though the manifest lists it")
        if path.stat().st_size != entry["bytes"] or sha256(path) != entry["sha256"]:
            raise BrokenProduct(f"{path}: its bytes differ from the manifest")


def digest(product: Path) -> str:
    """Hex SHA-256 of the manifest: equal digests mean equal products."""
    read_manifest(product)
    return sha256(product / MANIFEST)

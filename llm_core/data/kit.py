"""Small files that a worker needs beside its rows (rules, lists, evaluation sets), where it sees no folder of ours.

They are laid down in the store, and each process of a worker copies them once into a temporary folder of its own. What
a task says about them stays as it is; only the folders in it are exchanged where the work is done.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from llm_core.artifacts import dump_json
from llm_core.storage.places import Place

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Kit:
    """Files and folders by the paths that the sender knows them by, in a place that every worker reaches."""

    place: Place
    listing: str

    @staticmethod
    def packed(paths: Mapping[str, Path], place: Place) -> Kit:
        """Lay files and folders down under short names of their own."""
        files: dict[str, str] = {}
        for name, path in sorted(paths.items()):
            inside = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
            for file in inside:
                if "__pycache__" not in file.parts:
                    data = file.read_bytes()
                    key = hashlib.sha256(data).hexdigest()
                    place.write(key, data)
                    files[f"{name}/{file.relative_to(path).as_posix()}" if path.is_dir() else name] = key
        listing = dump_json({"files": files, "paths": {str(path): name for name, path in paths.items()}})
        key = f"{hashlib.sha256(listing).hexdigest()}.json"
        place.write(key, listing)
        return Kit(place, key)

    def settled(self, value: Value) -> Value:
        """The value with every path in it exchanged for that of this process's copy."""
        folder, paths = _unpacked(self)
        moved: Value = _moved(value, folder.name, paths)
        return moved


@lru_cache(4)
def _unpacked(kit: Kit) -> tuple[tempfile.TemporaryDirectory[str], dict[str, str]]:
    """The folder lives as long as the process."""
    listing = json.loads(kit.place.read(kit.listing))
    folder = tempfile.TemporaryDirectory(prefix="groundup-kit-")
    for name in listing["paths"].values():
        if not any(file == name for file in listing["files"]):
            Path(folder.name, name).mkdir()
    for name, key in listing["files"].items():
        path = Path(folder.name, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(kit.place.read(key))
    return folder, listing["paths"]


def _moved(value: Any, folder: str, paths: Mapping[str, str]) -> Any:
    if isinstance(value, Path):
        for old, name in paths.items():
            if value == Path(old) or Path(old) in value.parents:
                return Path(folder, name, value.relative_to(old))
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        changed = {name: _moved(inner, folder, paths) for name, inner in fields.items()}
        return dataclasses.replace(value, **{name: new for name, new in changed.items() if new is not fields[name]})
    if isinstance(value, tuple):
        inner = tuple(_moved(item, folder, paths) for item in value)
        return inner if any(new is not old for new, old in zip(inner, value, strict=True)) else value
    return value

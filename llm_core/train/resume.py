"""Resume points: folders of safetensors files with a record, whole or not there at all.

Notable:
- A point is written under another name, flushed to disk, then renamed: a kill at any moment or a full disk leaves the
  points before it whole.
- It holds tensors under the model's own names, so it does not depend on how many processes wrote it. Here they are
  whole, come one by one and go to disk in files of at most 4 GB: no process ever holds a second copy of a large model.
  What is spread over ranks is written by each rank for itself (`parts.py`).
- Numbers are part of the names (step-00001200): the newest is found by looking, no pointer can disagree with it.
- Sizes and SHA-256 of all files stand in the record, and the record's own.
- A point that is damaged or of other settings is refused with its name, never overlooked.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from torch import Tensor

from llm_core.artifacts import sha256
from llm_core.contract import BadInput
from llm_core.sealed import read_sealed, write_sealed

SHARD_BYTES = 4_000_000_000
"""Largest file of tensors in bytes; a single larger tensor has a file of its own."""
RECORD = "record.json"


class Points:
    """The numbered points `<kind>-<step>` of one folder, of which the newest `keep` stay."""

    def __init__(self, folder: Path, kind: str, keep: int = 2, shard_bytes: int = SHARD_BYTES) -> None:
        self.folder, self.kind, self.keep, self.shard_bytes = folder, kind, keep, shard_bytes

    def steps(self) -> list[int]:
        """Steps of all points, ascending."""
        found = [path.name.removeprefix(f"{self.kind}-") for path in self.folder.glob(f"{self.kind}-*")]
        return sorted(int(step) for step in found if step.isdigit())

    def path(self, step: int) -> Path:
        """Where the point of `step` is."""
        return self.folder / f"{self.kind}-{step:08d}"

    def write(self, step: int, tensors: Iterable[tuple[str, Tensor]], record: Mapping[str, Any]) -> None:
        """Write the point of `step` and drop those beyond the newest `keep`.

        Raises `OSError` naming the file if it cannot be written; the points before it are then untouched.
        """
        path = self.path(step)
        partial = self.begun(step)
        try:
            partial.mkdir(parents=True)
            self.publish(step, _fill(partial, tensors, self.shard_bytes), record)
        except BaseException as error:
            shutil.rmtree(partial, ignore_errors=True)
            if isinstance(error, OSError) or type(error).__name__ == "SafetensorError":
                raise OSError(f"{path}: could not be saved ({error}); the points saved before are whole") from error
            raise

    def begun(self, step: int) -> Path:
        """Where the point of `step` is put together; what a killed attempt left there is removed."""
        path = self.path(step)
        partial = path.with_name(f".{path.name}.part")
        shutil.rmtree(partial, ignore_errors=True)
        return partial

    def publish(self, step: int, files: Mapping[str, Any], record: Mapping[str, Any]) -> None:
        """Give the point of `step`, whose files are written, its record and its name; drop those beyond `keep`."""
        path = self.path(step)
        partial = path.with_name(f".{path.name}.part")
        write_sealed(partial / RECORD, {"files": files, "record": dict(record)})
        _sync(partial)
        shutil.rmtree(path, ignore_errors=True)
        os.replace(partial, path)
        _sync(self.folder)
        for old in self.steps()[: -self.keep]:
            shutil.rmtree(self.path(old))

    def read(self, step: int, rank: int = 0, world: int = 1) -> Point:
        """The point of `step`, checked. Raises `BadInput` naming it if it is damaged or foreign.

        Of several ranks each checks the bytes of its share of the files.
        """
        return Point(self.path(step), rank, world)

    def newest(self, rank: int = 0, world: int = 1) -> Point | None:
        """The point of the highest step, or None. Raises `BadInput` as `read` does."""
        steps = self.steps()
        return self.read(steps[-1], rank, world) if steps else None


def _fill(folder: Path, tensors: Iterable[tuple[str, Tensor]], limit: int) -> dict[str, dict[str, Any]]:
    """Write the tensors; what is known of each file."""
    files: dict[str, dict[str, Any]] = {}
    waiting: dict[str, Tensor] = {}

    def flush() -> None:
        from safetensors.torch import save_file

        name = f"tensors-{len(files) + 1:05d}.safetensors"
        save_file(waiting, folder / name)
        files[name] = facts(folder / name)
        _sync(folder / name)
        waiting.clear()

    held = 0
    for name, value in tensors:
        size = value.numel() * value.element_size()
        if waiting and held + size > limit:
            flush()
            held = 0
        waiting[name] = value.detach().cpu().contiguous()
        held += size
    if waiting:
        flush()
    return files


def facts(path: Path) -> dict[str, Any]:
    """What a record says of a file of tensors."""
    return {"bytes": path.stat().st_size, "sha256": sha256(path)}


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Point:
    """A written point: its `record`, and its tensors, read one by one when they are asked for."""

    def __init__(self, path: Path, rank: int = 0, world: int = 1) -> None:
        self.path = path
        try:
            content = read_sealed(path / RECORD)
        except OSError as error:
            raise self.broken(f"{RECORD} is missing or unreadable") from error
        except BadInput as error:
            raise self.broken(f"{RECORD}: its bytes changed after it was written") from error
        self.record: dict[str, Any] = content["record"]
        self.files: dict[str, dict[str, Any]] = content["files"]
        for number, (name, entry) in enumerate(self.files.items()):
            file = path / name
            if not file.is_file() or file.stat().st_size != entry["bytes"]:
                raise self.broken(f"{name} is missing or cut short")
            if number % world == rank and sha256(file) != entry["sha256"]:
                raise self.broken(f"{name}: its bytes changed after it was written")

    def broken(self, why: str) -> BadInput:
        """The sentence for a point that cannot be used."""
        return BadInput(f"{self.path}: not a whole resume point ({why}); delete it to go on from the one before it")

    def read(self, wanted: Mapping[str, Tensor], take: Callable[[str, Tensor], object], prefix: str = "") -> None:
        """Hand each tensor of `wanted`, stored under `prefix` + its name, to `take`, one by one.

        Raises `BadInput` if one is missing or has another shape.
        """
        from safetensors import SafetensorError, safe_open

        with ExitStack() as stack:
            try:
                handles = [stack.enter_context(safe_open(self.path / name, framework="pt")) for name in self.files]
                where = {name: handle for handle in handles for name in handle.keys()}  # noqa: SIM118
            except SafetensorError as error:
                raise self.broken(str(error)) from error
            for name, like in wanted.items():
                if prefix + name not in where:
                    self.fits(prefix + name, None, like.shape)
                value = where[prefix + name].get_tensor(prefix + name)
                self.fits(prefix + name, value.shape, like.shape)
                take(name, value)

    def fits(self, name: str, found: Iterable[int] | None, wanted: Iterable[int]) -> None:
        """Raise `BadInput` unless the tensor is there and of the shape that is wanted."""
        if found is None:
            raise self.broken(f"it has no tensor {name!r}: it is of another model or optimizer")
        if tuple(found) != tuple(wanted):
            shapes = f"{tuple(found)}, wanted {tuple(wanted)}"
            raise self.broken(f"tensor {name!r} is {shapes}: it is of another model or optimizer")


def check_settings(point: Point, settings: Mapping[str, Any]) -> None:
    """Refuse a point that was made with other settings, naming each that differs and both values."""
    saved: dict[str, Any] = point.record.get("settings", {})
    now = json.loads(json.dumps(dict(settings)))
    differing = [
        f"{name} (was {saved.get(name)!r}, is {now.get(name)!r})"
        for name in sorted(saved.keys() | now.keys())
        if saved.get(name) != now.get(name)
    ]
    if differing:
        raise BadInput(
            f"{point.path}: this run began with other settings: {', '.join(differing)}; "
            "set them back, or delete the resume points to begin anew"
        )

"""Resume points: one safetensors file with all tensors and a small JSON record, replaced atomically.

A kill at any moment, or a full disk, leaves the previous resume point whole.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor


def write_tensors(path: Path, tensors: dict[str, Tensor], record: dict[str, Any]) -> None:
    """Write `tensors` and the JSON `record` to `path`: flushed to disk under another name, then renamed."""
    partial = path.with_name(f".{path.name}.part")
    contiguous = {name: value.detach().contiguous() for name, value in tensors.items()}
    save_file(contiguous, partial, metadata={"record": json.dumps(record, sort_keys=True)})
    descriptor = os.open(partial, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.replace(partial, path)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """What `write_tensors` wrote, or None if there is no whole file."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as handle:
            record: dict[str, Any] = json.loads(handle.metadata()["record"])
            return {name: handle.get_tensor(name) for name in handle.keys()}, record  # noqa: SIM118
    except SafetensorError:
        return None

"""JSON that a stage keeps to go on with, and that says itself whether it still is what was written.

Products have their manifest; everything else that is written to be read after a kill (records of resume points,
outcomes, notes, states) goes through here: a bit that turns over on the disk is named and not believed.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from llm_core.artifacts import dump_json, write_atomic
from llm_core.contract import BadInput


def write_sealed(path: Path, value: Any) -> None:
    """Write a JSON value with its own SHA-256, so that a reader sees the old file or the new one."""
    content = json.loads(dump_json(value))  # as it will be read: keys are text there
    write_atomic(path, dump_json({"content": content, "sha256": _digest(content)}))


def read_sealed(path: Path) -> Any:
    """The value. Raises `BadInput` naming the file if it was changed after it was written."""
    try:
        found = json.loads(path.read_bytes())
        whole = found["sha256"] == _digest(found["content"])
    except (ValueError, KeyError, TypeError, RecursionError):
        whole = False
    if not whole:
        raise BadInput(f"{path}: its bytes changed after it was written; delete it, and its work is done again")
    return found["content"]


def _digest(content: Any) -> str:
    return hashlib.sha256(dump_json(content)).hexdigest()

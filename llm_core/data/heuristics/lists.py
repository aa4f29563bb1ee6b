"""Lists that the user keeps as files: one entry a line, `#` begins a comment line, `.gz` may be compressed."""

from __future__ import annotations

from pathlib import Path

from llm_core.contract import BadInput
from llm_core.data.packed import gunzipped

Version = tuple[int, int]


def version(path: Path) -> Version:
    """What changes when the file does: time of change in ns, bytes. Raises `BadInput` naming an absent file."""
    try:
        about = path.stat()
    except OSError as error:
        raise BadInput(f"{path}: this list cannot be read ({error.__class__.__name__})") from error
    return about.st_mtime_ns, about.st_size


def entries(path: Path) -> tuple[str, ...]:
    """The entries of a list, sorted, each once. Raises `BadInput` naming the file that cannot be read."""
    try:
        data = path.read_bytes()
        text = (gunzipped(data) if path.suffix == ".gz" else data).decode("utf-8-sig")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: this list cannot be read ({error.__class__.__name__})") from error
    lines = (line.strip() for line in text.splitlines())
    return tuple(sorted({line for line in lines if line and not line.startswith("#")}))

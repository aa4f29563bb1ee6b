"""Which code files a stage depends on: what its module imports inside llm_core, followed to the end."""

from __future__ import annotations

import ast
import hashlib
from pathlib import Path

from llm_core import artifacts
from llm_core.pipeline import Stage

# A change in these cannot change a product: types only, and maps whose results come back in order.
NEUTRAL = frozenset(
    {
        "llm_core/contract.py",
        "llm_core/parallel.py",
        "llm_core/cluster.py",
        "llm_core/settings/cluster.py",
        "llm_core/settings/storage.py",
    }
)


def code_files(stage: Stage, root: Path) -> list[Path]:
    """Files of llm_core, relative to `root`, that the stage's module imports, itself included, sorted.

    acquire has none: only its settings, or a refresh, may fetch the web again.
    """
    if not stage.needs:
        return []
    found: set[Path] = set()
    waiting = [_file(stage.module, root)]
    while waiting:
        file = waiting.pop()
        if file is None or file in found:
            continue
        found.add(file)
        waiting.extend(_file(name, root) for name in _imports(root / file))
    return sorted(file for file in found if file.as_posix() not in NEUTRAL and file.name != "__init__.py")


def _imports(path: Path) -> list[str]:
    """Every name that might be a module: `from a import b` may mean a.b."""
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return [name for name in names if name.split(".")[0] == "llm_core"]


def _file(module: str, root: Path) -> Path | None:
    file = Path(*module.split(".")).with_suffix(".py")
    return file if (root / file).is_file() else None


def path_digest(path: Path) -> str:
    """Hex SHA-256 of a file, or of a directory's file names and bytes; of nothing if the path is absent."""
    if path.is_file():
        return artifacts.sha256(path)
    files = sorted(p for p in path.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    listing = [[file.relative_to(path).as_posix(), artifacts.sha256(file)] for file in files]
    return hashlib.sha256(artifacts.dump_json(listing)).hexdigest()

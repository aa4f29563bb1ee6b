"""Tasks of lm-evaluation-harness whose data is a file on this machine: YAML files in sets/, looked up by name.

A file is looked for under its path in the data folder, then by its bare name, each also without `.gz`.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml

from llm_core.artifacts import sha256
from llm_core.contract import BadInput

WIKITEXT = "local_wikitext2"
"""Word perplexity is measured without the harness, and asked for as its tasks are."""
WIKITEXT_FILE = "wikitext2/test.txt"
GENERATED = ("generated_choice", "generated_cloze")


def local_names(sets: Path) -> list[str]:
    """Names of all tasks that need nothing but a data folder."""
    return sorted([*(path.stem for path in sets.glob("*.yaml")), WIKITEXT])


def chosen(wanted: Sequence[str], sets: Path, data: Path) -> list[str]:
    """The tasks that `wanted` names, each once; a name with * or ? stands for the local ones whose data is there."""
    found: dict[str, None] = {}
    for name in wanted:
        if any(letter in name for letter in "*?["):
            fitting = [n for n in local_names(sets) if fnmatchcase(n, name) and has_data(n, sets, data)]
            found |= dict.fromkeys(fitting)
        else:
            found[name] = None
    return list(found)


def has_data(name: str, sets: Path, data: Path) -> bool:
    """Whether a local task's file is there; those of generated tasks are made."""
    return name in GENERATED or find(data, file_of(name, sets)) is not None


def file_of(name: str, sets: Path) -> str:
    """The file that a local task reads, relative to the data folder."""
    if name == WIKITEXT:
        return WIKITEXT_FILE
    files = _read(sets / f"{name}.yaml")["dataset_kwargs"]["data_files"]
    return str(next(iter(files.values())))


def configuration(name: str, sets: Path, data: Path) -> dict[str, Any]:
    """A local task as the harness takes it. Raises `BadInput` if its file is not in the data folder."""
    made = _read(sets / f"{name}.yaml")
    files = made["dataset_kwargs"]["data_files"]
    for split, file in files.items():
        path = find(data, file)
        if path is None:
            raise BadInput(f"evaluate.data: {file} is not in the folder")
        files[split] = str(path)
    return made


def find(data: Path, file: str) -> Path | None:
    """Where `file` stands in the folder, or None."""
    plain = file.removesuffix(".gz")
    names = (file, plain, Path(file).name, Path(plain).name)
    return next((data / name for name in names if (data / name).is_file()), None)


def digests(files: Sequence[str], data: Path) -> dict[str, str]:
    """SHA-256 of those of the files that are in the folder."""
    found = {file: find(data, file) for file in files}
    return {file: sha256(path) for file, path in sorted(found.items()) if path is not None}


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(path.read_text())
    return found

"""Datasets in the Hub's form, streamed: a hub id and a local folder go through the same call.

The place in the stream is kept by `datasets` itself (IterableDataset.state_dict), so that a killed run goes on inside
the file it was reading. What a hub's branch or tag pointed at when reading began is noted and used until the end.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import xxhash

from llm_core.contract import BadInput
from llm_core.data.sources.parts import Parts
from llm_core.data.sources.reach import SECONDS, hub, hub_forbidden, reachable
from llm_core.data.sources.rows import Columns, Row, shape


@dataclass(frozen=True, slots=True)
class DatasetOptions:
    """Which dataset, and what its rows are. `source` is the source's name, for messages."""

    source: str
    path: str
    config: str | None = None
    split: str = "train"
    revision: str | None = None
    holds: str = "text"
    columns: Columns = field(default_factory=Columns)


class Interrupted(RuntimeError):
    """The network failed in the middle of a dataset; what was read is kept."""


class DatasetRows:
    """The rows of a dataset's split in the shape of raw rows: a `Resumable`."""

    def __init__(self, options: DatasetOptions, parts: Parts) -> None:
        """Find the dataset, or raise `BadInput` at once: `datasets` itself would try for 23 seconds."""
        self.options = options
        self.skipped: Counter[str] = Counter()
        self.unreadable: list[dict[str, str | float]] = []
        self.facts: dict[str, Any] = {"path": options.path, "config": options.config, "split": options.split}
        self._where = options.path
        self._dataset: Any = None
        folder = Path(options.path)
        if folder.exists():
            self._where, self._revision = str(folder.resolve()), None
            self._version = _fingerprint(folder)
        else:
            self._revision = self._version = _resolve(options, parts)
            self.facts["revision"] = self._revision

    @property
    def key(self) -> str:
        """What is read and how: another version of the dataset has another key."""
        return json.dumps([asdict(self.options), self._version])

    def rows(self, state: Any) -> Iterator[Row]:
        """Raw rows behind `state`. Raises `BadInput` for what cannot be read, naming the source and row."""
        self._read = 0
        shaped = shape(
            self._stream(state), self.options.holds, self.options.columns, place=self._place, skipped=self.skipped
        )
        yield from shaped

    def state(self) -> Any:
        """`datasets`' own state, and how many rows were read."""
        return {"dataset": self._dataset.state_dict(), "read": self._read}

    def _place(self) -> str:
        return f"acquire.sources: {self.options.source!r}: {self.options.path}, row {self._read}"

    def _stream(self, state: Any) -> Iterator[Row]:
        import datasets  # takes a second, and only this source needs it

        datasets.disable_progress_bars()
        options = self.options
        try:
            self._dataset = datasets.load_dataset(
                self._where, options.config, split=options.split, revision=self._revision, streaming=True
            )
            if state is not None:
                self._dataset.load_state_dict(state["dataset"])
                self._read = state["read"]
            for row in self._dataset:
                self._read += 1
                yield row
        except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
            if isinstance(error, BadInput):
                raise
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            if self._revision and self._read and isinstance(error, OSError):
                raise Interrupted(f"{self._place()}: {reason}; a rerun goes on from there") from error
            raise BadInput(f"{self._place()}: cannot be read as a dataset: {reason}") from error


def _resolve(options: DatasetOptions, parts: Parts) -> str:
    """The commit that the revision means now, or meant when the reading that goes on here began."""
    begun = parts.unfinished
    if begun and begun["facts"].get("path") == options.path and begun["facts"].get("revision"):
        return str(begun["facts"]["revision"])
    name = f"acquire.sources: {options.source!r}"
    if hub_forbidden():
        raise BadInput(f"{name}: {options.path!r} is no local folder, and HF_HUB_OFFLINE forbids the network")
    if not reachable(hub()):
        raise BadInput(f"{name}: {options.path!r} is no local folder, and {hub()} cannot be reached")
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        found = HfApi(endpoint=hub()).dataset_info(options.path, revision=options.revision, timeout=4 * SECONDS)
    except (OSError, ValueError, HfHubHTTPError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BadInput(f"{name}: {options.path!r} at {options.revision or 'its newest commit'}: {reason}") from error
    return str(found.sha)


def _fingerprint(folder: Path) -> str:
    """A digest of names, sizes and dates of what lies in a folder: changed data must not be taken for the same."""
    hasher = xxhash.xxh3_128()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        facts = path.stat()
        hasher.update(f"{path.relative_to(folder)}\0{facts.st_size}\0{facts.st_mtime_ns}\0".encode(errors="replace"))
    return hasher.hexdigest()

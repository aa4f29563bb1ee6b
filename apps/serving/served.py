"""A model ready to be served, and where it comes from: a directory, or the registry's champion by its digest."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from llm_core import artifacts
from llm_core.contract import BadInput
from llm_core.data.bpe import Tokenizer
from llm_core.model.checkpoint import WEIGHTS, load_model
from llm_core.model.transformer import Transformer
from tasks import tracking
from tasks.registry import MODEL, Registry


@dataclass(frozen=True)
class Served:
    """A loaded model with what answering needs to know of it."""

    model: Transformer
    tokenizer: Tokenizer
    digest: str
    """Hex SHA-256 that names the model's files."""
    version: str
    """The registry's number and the model's name, or the directory."""
    created: int
    """When the files were made, in seconds since 1970."""
    pieces: tuple[bytes, ...]
    """The bytes of each id; empty for special tokens, which are never shown."""
    stop_ids: frozenset[int]
    """Special tokens: an answer ends where the model would end the turn or begin another."""
    longest: int
    """Bytes of the longest token: a text of more than context times this cannot fit."""

    @property
    def context(self) -> int:
        """Tokens of prompt and answer together."""
        return self.model.config.context

    def text(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens left out."""
        return b"".join(self.pieces[token] for token in ids).decode(errors="replace")

    @property
    def fingerprint(self) -> str:
        """What responses tell about the model that answered."""
        return f"fp_{self.digest[:12]}"


def load(folder: Path, digest: str, version: str) -> Served:
    """Read the model and tokenizer in `folder`. Raises `BadInput` naming what is wrong with it."""
    tokenizer, model = Tokenizer.load(folder), load_model(folder)
    model.config.check_vocabulary(tokenizer.vocab_size)
    pieces = [b""] * model.config.vocab_size
    for token, rank in tokenizer.ranks.items():
        pieces[rank] = token
    return Served(
        model=model,
        tokenizer=tokenizer,
        digest=digest,
        version=version,
        created=int((folder / WEIGHTS).stat().st_mtime),
        pieces=tuple(pieces),
        stop_ids=frozenset(tokenizer.specials.values()),
        longest=max(map(len, tokenizer.ranks)),
    )


class Source(Protocol):
    """Where the served model comes from."""

    watched: bool
    """Whether it is worth asking again and again."""

    def digest(self) -> str | None:
        """Which model it is now, found quickly; None if that cannot be told now."""

    def load(self) -> Served:
        """Read it. Raises what reading raises."""


class Folder:
    """A model's directory; it is read again on SIGHUP."""

    watched = False

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def digest(self) -> str | None:
        """The manifest's digest, or that of the files where there is no manifest."""
        if (self.folder / artifacts.MANIFEST).is_file():
            return artifacts.digest(self.folder)
        if not (self.folder / WEIGHTS).is_file():
            raise BadInput(f"--model {self.folder}: no model here (no {WEIGHTS})")
        return artifacts.sha256(self.folder / WEIGHTS)

    def load(self) -> Served:
        """Read the directory."""
        return load(self.folder, self.digest() or "", self.folder.name)


class Champion:
    """The version that an alias of the registry points at; it is asked again and again."""

    watched = True

    def __init__(self, uri: str, alias: str, cache: Path) -> None:
        self.uri, self.alias, self.cache = uri, alias, cache
        self._registry: Registry | None = None
        self._lock = threading.Lock()

    def digest(self) -> str | None:
        """The digest that the registry notes for the alias; imports no mlflow."""
        found = tracking.ask(self.uri, "registered-models/alias", name=MODEL, alias=self.alias)
        tags = {tag["key"]: tag["value"] for tag in found["model_version"].get("tags", [])} if found else {}
        return tags.get("digest")

    def load(self) -> Served:
        """Download the version, unless it is kept already, and read it."""
        with self._lock:
            self._registry = self._registry or Registry(self.uri)
            version = self._registry.get(self.alias)
            folder = self._registry.model_folder(self.alias, self.cache)
        if version is None:
            raise BadInput(f"the registry has no {self.alias}; `groundup run` makes one")
        return load(folder, folder.name, f"{version.number} ({version.model})")

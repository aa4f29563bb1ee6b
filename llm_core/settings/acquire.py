"""Section `acquire` of params.yaml: where the data comes from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from llm_core.contract import Config
from llm_core.settings.web import Slug, WebSource

Holds = Literal["text", "dialogues", "preferences"]


class EmbeddedSource(Config):
    """The Python standard library's documentation, rendered by pydoc, served on loopback and crawled over HTTP."""

    kind: Literal["embedded"] = "embedded"
    name: Slug = "python"
    """Name of the source: letters, digits, - and _; unique among the sources."""
    licence: str = "PSF-2.0"
    """SPDX identifier of the licence, written beside every document."""
    modules: tuple[str, ...] = ()
    """Top-level modules to render, for example [json, asyncio]; empty takes every public one."""
    topics: bool = True
    """Also serve the language topics of pydoc_data as pages."""
    concurrency: int = Field(default=8, ge=1, le=64)
    """Requests under way at the same time, 1 to 64."""


class ProblemsSource(Config):
    """Small problems whose answers are checked by running Python: a seeded generator."""

    kind: Literal["problems"] = "problems"
    name: Slug = "problems"
    """Name of the source: letters, digits, - and _; unique among the sources."""
    licence: str = "CC0-1.0"
    """SPDX identifier of the licence, written beside every dialogue."""
    count: int = Field(default=12_000, ge=1, le=20_000)
    """Distinct problems to generate, 1 to 20,000."""
    operations: tuple[Literal["sum", "difference", "max", "min", "len", "reverse"], ...] = ()
    """Kinds of problems; empty takes all."""
    seed: int = Field(default=1, ge=0)
    """Seed of the generator, 0 or more."""


class Columns(Config):
    """Which columns of a dataset hold what."""

    text: str = "text"
    """Column with a document's text."""
    title: str | None = None
    """Column with a document's title, if there is one."""
    url: str | None = None
    """Column with a document's URL, if there is one."""
    messages: str = "messages"
    """Column with a list of {role, content}; where it is absent, instruction, input and output are read."""
    instruction: str = "instruction"
    """Column with what the user asks."""
    input: str = "input"
    """Column with what the instruction is about; may be absent or empty."""
    output: str = "output"
    """Column with the answer."""
    prompt: str = "prompt"
    """Column with the prompt of a preference: text or messages; where it is absent, instruction and input are read."""
    chosen: str = "chosen"
    """Column with the preferred answer: text or messages."""
    rejected: str = "rejected"
    """Column with the other answer: text or messages."""


class HuggingFaceSource(Config):
    """A dataset in the Hub's form: a hub id, or a local folder in the same layout. It is streamed."""

    kind: Literal["huggingface"]
    name: Slug
    """Name of the source: letters, digits, - and _; unique among the sources."""
    licence: str = "unknown"
    """SPDX identifier of the dataset's licence."""
    path: str = Field(min_length=1)
    """Hub id such as owner/dataset, or a local folder."""
    config: str | None = None
    """Name of the dataset's configuration, if it has several."""
    split: str = "train"
    """The dataset's own split to read."""
    revision: str | None = None
    """Commit or tag of the hub's repository; blank takes the newest."""
    holds: Holds = "text"
    """What a row is: text, dialogues or preferences."""
    columns: Columns = Columns()
    """Which columns hold what."""
    limit: int | None = Field(default=None, ge=1)
    """Rows to read, 1 or more; blank reads all."""


class FilesSource(Config):
    """Local files: txt, md, html, jsonl or parquet, the last three also compressed with gzip where that is usual."""

    kind: Literal["files"]
    name: Slug
    """Name of the source: letters, digits, - and _; unique among the sources."""
    licence: str = "unknown"
    """SPDX identifier of the files' licence."""
    paths: tuple[str, ...] = Field(min_length=1)
    """Files, folders or patterns such as notes/**/*.md, relative to the workspace."""
    holds: Holds = "text"
    """What a file or row is: text, dialogues or preferences."""
    columns: Columns = Columns()
    """Which columns of jsonl and parquet files hold what."""
    limit: int | None = Field(default=None, ge=1)
    """Documents or rows to read, 1 or more; blank reads all."""


Source = Annotated[
    EmbeddedSource | ProblemsSource | WebSource | HuggingFaceSource | FilesSource, Field(discriminator="kind")
]


class AcquireConfig(Config):
    """What `acquire` reads."""

    sources: tuple[Source, ...] = Field(default=(EmbeddedSource(), ProblemsSource()), min_length=1)
    """The sources; `kind` is embedded, problems, web, huggingface or files. Names must differ."""
    store: Path = Path(".groundup/crawl")
    """Folder of the crawl stores, one a source, relative to the workspace. It only grows."""
    refresh: bool = False
    """Ask again for pages that the store already holds; an unchanged page writes nothing."""

    @model_validator(mode="after")
    def _unique(self) -> AcquireConfig:
        names = [source.name for source in self.sources]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two sources are named {twice[0]!r}")
        return self

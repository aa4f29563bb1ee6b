"""Section `acquire` of params.yaml: where the data comes from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from llm_core.contract import Config
from llm_core.settings.storage import StorageSettings, in_store
from llm_core.settings.web import Slug, WebSource

Holds = Literal["text", "dialogues", "preferences"]
Weight = Annotated[float, Field(gt=0, le=1_000)]
Limit = Annotated[int | None, Field(ge=1)]


class EmbeddedSource(Config):
    """The Python standard library's documentation, rendered by pydoc, served on loopback and crawled over HTTP."""

    kind: Literal["embedded"] = "embedded"
    name: Slug = "python"
    """Name of the source: letters, digits, - and _; unique among the sources."""
    licence: str = "PSF-2.0"
    """SPDX identifier of the licence, written beside every document."""
    weight: Weight = 1.0
    """How many times over its training rows stand in the training stream: above 0, up to 1,000; 0.5 takes half."""
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
    weight: Weight = 1.0
    """How many times over its training rows stand in the training stream: above 0, up to 1,000; 0.5 takes half."""
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
    group: str | None = None
    """Column that names what must not be divided between training and validation, such as a book or a conversation."""
    licence: str | None = None
    """Column with a document's own licence; where it is absent or empty, the source's licence holds."""
    messages: str = "messages"
    """Column with a list of {role, content}, or with a transcript of Human: and Assistant: turns; where it is absent,
    instruction, input and output are read."""
    instruction: str = "instruction"
    """Column with what the user asks."""
    input: str = "input"
    """Column with what the instruction is about; may be absent or empty."""
    output: str = "output"
    """Column with the answer."""
    prompt: str = "prompt"
    """Column with the prompt of a preference: text or messages; where it is absent, instruction and input are read."""
    chosen: str = "chosen"
    """Column with the preferred answer: text, messages, or a transcript of Human: and Assistant: turns."""
    rejected: str = "rejected"
    """Column with the other answer, in the same form; what comes before the answer must be the same in both."""


class HuggingFaceSource(Config):
    """A dataset in the Hub's form: a hub id, or a local folder in the same layout. It is streamed."""

    kind: Literal["huggingface"]
    name: Slug
    """Name of the source: letters, digits, - and _; unique among the sources."""
    licence: str = "unknown"
    """SPDX identifier of the dataset's licence."""
    weight: Weight = 1.0
    """How many times over its training rows stand in the training stream: above 0, up to 1,000; 0.5 takes half."""
    path: str = Field(min_length=1)
    """Hub id such as owner/dataset, or a local folder."""
    config: str | None = None
    """Name of the dataset's configuration, if it has several."""
    split: str = "train"
    """The dataset's own split to read."""
    revision: str | None = None
    """Commit, tag or branch of the hub's repository; blank takes the newest. What it was is noted in the product."""
    holds: Holds = "text"
    """What a row is: text, dialogues or preferences."""
    columns: Columns = Columns()
    """Which columns hold what."""
    limit: Limit = None
    """Rows to keep, 1 or more; blank keeps all."""


class FilesSource(Config):
    """Files: html, txt, md, jsonl, json (an array of objects), parquet or warc, each also as .gz or .zst."""

    kind: Literal["files"]
    name: Slug
    """Name of the source: letters, digits, - and _; unique among the sources."""
    licence: str = "unknown"
    """SPDX identifier of the files' licence."""
    weight: Weight = 1.0
    """How many times over its training rows stand in the training stream: above 0, up to 1,000; 0.5 takes half."""
    paths: tuple[str, ...] = Field(min_length=1)
    """Files, folders or patterns such as notes/**/*.md, relative to the workspace, or URLs such as s3://bucket/notes/.

    A URL's scheme is one that fsspec has a package for (s3: the extra [scale]); credentials come from the environment.
    """
    holds: Holds = "text"
    """What a file or row is: text, dialogues or preferences."""
    columns: Columns = Columns()
    """Which columns of jsonl, json and parquet files hold what."""

    @field_validator("paths")
    @classmethod
    def _are_paths_or_stores(cls, paths: tuple[str, ...]) -> tuple[str, ...]:
        for path in paths:
            if path.startswith(("http://", "https://")):
                raise ValueError("pages of the web are a source of kind web; paths are files or URLs of a store")
            in_store(path)
        return paths

    max_bytes: int = Field(default=50_000_000, ge=1_000, le=2_000_000_000)
    """Largest html, txt or md file that is read, bytes after decompression; a larger one is counted and left out."""
    limit: Limit = None
    """Documents or rows to keep, 1 or more; blank keeps all."""


class CommonCrawlSource(Config):
    """Pages of Common Crawl's WARC files, from its host or from a local folder in the same layout."""

    kind: Literal["common_crawl"]
    name: Slug
    """Name of the source: letters, digits, - and _; unique among the sources."""
    licence: str = "unknown"
    """SPDX identifier written where a page names no licence of its own; the pages belong to their publishers."""
    weight: Weight = 1.0
    """How many times over its training rows stand in the training stream: above 0, up to 1,000; 0.5 takes half."""
    crawl: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the crawl, such as CC-MAIN-2024-22."""
    prefix: str = Field(default="https://data.commoncrawl.org", min_length=1)
    """Where the crawl lies: an http or https host, or a local folder in the same layout."""
    listing: str = "crawl-data/{crawl}/warc.paths.gz"
    """List of the WARC files, one path a line, relative to `prefix`; {crawl} stands for the crawl's name."""
    files: Limit = None
    """WARC files to read, from the start of the listing, 1 or more; blank reads all. A file has about 1 GB."""
    hosts: tuple[str, ...] = ()
    """Hosts whose pages are kept; .example.org stands for example.org and every host below it. Empty keeps all."""
    languages: tuple[str, ...] = ()
    """Languages that are kept, as ISO 639-1 or 639-3 codes; judged by Common Crawl's own languages record or the
    page's Content-Language. A page with neither is kept, and clean decides. Empty keeps all."""
    mime: tuple[str, ...] = ("text/html", "application/xhtml+xml")
    """MIME types that are kept, as Common Crawl identified them, else as the server said. Empty keeps all."""
    max_bytes: int = Field(default=5_000_000, ge=1_000, le=100_000_000)
    """Largest page that is kept, bytes after decoding, 1,000 to 100,000,000."""
    downloads: int = Field(default=2, ge=1, le=8)
    """Files downloaded at the same time, 1 to 8; Common Crawl asks for few."""
    timeout_seconds: float = Field(default=60.0, gt=0, le=600)
    """Seconds without any answer after which a download is tried again from where it was, up to 600."""
    limit: Limit = None
    """Pages to keep, 1 or more; blank keeps all."""

    @field_validator("prefix")
    @classmethod
    def _reachable_scheme(cls, prefix: str) -> str:
        if "://" in prefix and not prefix.startswith(("http://", "https://")):
            raise ValueError(f"{prefix!r} is neither an http or https URL nor a folder")
        return prefix


class WikipediaSource(Config):
    """Articles of one Wikipedia: the hub's plain text, or a raw dump."""

    kind: Literal["wikipedia"]
    name: Slug
    """Name of the source: letters, digits, - and _; unique among the sources."""
    licence: str = "CC-BY-SA-4.0"
    """SPDX identifier of the articles' licence."""
    weight: Weight = 1.0
    """How many times over its training rows stand in the training stream: above 0, up to 1,000; 0.5 takes half."""
    language: str = Field(default="en", pattern=r"^[a-z][a-z0-9-]{1,19}$")
    """Wikipedia's own code of its language, such as en, simple or de."""
    date: str = Field(default="20231101", pattern=r"^\d{8}$")
    """Day of the plain version, YYYYMMDD; its configuration is named <date>.<language>."""
    path: str = Field(default="wikimedia/wikipedia", min_length=1)
    """Hub id of the plain version, or a local folder in the same layout."""
    revision: str | None = None
    """Commit, tag or branch of the hub's repository; blank takes the newest."""
    dump: str | None = None
    """Path or URL of a raw dump, <language>wiki-<date>-pages-articles-multistream.xml.bz2, to read instead of the plain
    version; needs the extra `wikipedia`. Articles alone: no redirects, no talk or help pages."""
    workers: int = Field(default=0, ge=0, le=256)
    """Processes that turn a dump's wiki text into plain text, 1 to 256; 0 takes all cores."""
    limit: Limit = None
    """Articles to keep, 1 or more; blank keeps all."""


class BookCorpusSource(Config):
    """BookCorpus: single sentences of unpublished novels, whose authors gave no licence. Never read by default."""

    kind: Literal["bookcorpus"]
    name: Slug
    """Name of the source: letters, digits, - and _; unique among the sources."""
    licence: str = "unknown"
    """SPDX identifier of the licence; the books' authors gave none."""
    weight: Weight = 1.0
    """How many times over its training rows stand in the training stream: above 0, up to 1,000; 0.5 takes half."""
    path: str = Field(default="bookcorpus/bookcorpus", min_length=1)
    """Hub id of a copy, or a local folder with Parquet files."""
    revision: str | None = "refs/convert/parquet"
    """Commit, tag or branch of the hub's repository; the default is the branch that holds Parquet files."""
    split: str = "train"
    """The dataset's own split to read."""
    column: str = "text"
    """Column with one sentence a row."""
    sentences: int = Field(default=200, ge=1, le=100_000)
    """Sentences that make a document, 1 to 100,000: the copies know no borders of books."""
    limit: Limit = None
    """Documents to keep, 1 or more; blank keeps all."""


Source = Annotated[
    EmbeddedSource
    | ProblemsSource
    | WebSource
    | HuggingFaceSource
    | FilesSource
    | CommonCrawlSource
    | WikipediaSource
    | BookCorpusSource,
    Field(discriminator="kind"),
]


class AcquireConfig(Config):
    """What `acquire` reads."""

    how: ClassVar[frozenset[str]] = Config.how | {"storage"}

    sources: tuple[Source, ...] = Field(default=(EmbeddedSource(), ProblemsSource()), min_length=1)
    """The sources; `kind` is embedded, problems, web, huggingface, files, common_crawl, wikipedia or bookcorpus. Their
    names must differ."""
    store: Path = Path(".groundup/crawl")
    """Folder of the crawl stores, one a web or Common Crawl source, relative to the workspace. It only grows."""
    refresh: bool = False
    """Ask again for pages that the store already holds; an unchanged page writes nothing."""
    storage: StorageSettings = StorageSettings()
    """Where the product's files lie; left out, the section `storage` of params.yaml says it."""

    @model_validator(mode="after")
    def _unique(self) -> AcquireConfig:
        names = [source.name for source in self.sources]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two sources are named {twice[0]!r}")
        return self

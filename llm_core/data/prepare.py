"""What a worker does to a batch: read, extract, mend, filter, mask. Each document comes back with its text or its
reason.

Every page is worked on in a child process of the worker, which is ended if the page takes too long: it is then dropped
as "timeout". A page over which a parser crashes is dropped as "crashed". Neither costs any other page.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import xxhash
from fastwarc import ArchiveIterator

from llm_core.data.characters import CharacterOptions, part_special_tokens, repair
from llm_core.data.extract import MAX_BYTES, MIN_RULE_CHARACTERS, Page, Unreadable, main_text, read, size_limit
from llm_core.data.filters import FilterOptions, judge
from llm_core.data.language import language_of
from llm_core.data.metadata import Metadata, forbids_indexing
from llm_core.data.pii import MaskOptions, mask
from llm_core.data.rules import rule_for
from llm_core.parallel import isolated

EXCERPT = 200
MOST_REPLACED = 0.01
"""Larger shares of replacement characters in a text mean that its bytes were read in the wrong encoding, or lost."""


@dataclass(frozen=True, slots=True)
class PrepareOptions:
    """How the documents of a source are prepared."""

    rules: Path
    rule: str | None = None
    engine: str = "trafilatura"
    min_rule_characters: int = MIN_RULE_CHARACTERS
    respect_noindex: bool = True
    max_bytes: int = MAX_BYTES
    timeout: float = 20.0
    characters: CharacterOptions = field(default_factory=CharacterOptions)
    personal: MaskOptions = field(default_factory=MaskOptions)
    languages: tuple[str, ...] = ()
    language_threshold: float = 0.65
    record_language: bool = False
    filters: FilterOptions = field(default_factory=FilterOptions)


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of one source: pages in WARC segments under `warc`, or with their `record`, or documents with their text."""

    source: str
    rows: Sequence[dict[str, Any]]
    options: PrepareOptions
    warc: Path | None = None


@dataclass(frozen=True, slots=True)
class Candidate:
    """A document as far as it can be judged alone: `reason` says why it is dropped, None that it may stay."""

    url: str | None
    text: str
    """Of a document that is dropped, the beginning."""
    reason: str | None = None
    title: str | None = None
    language: str | None = None
    licence: str | None = None
    date: str | None = None
    group: str | None = None
    digest: str | None = None
    """xxh3-128, in hex, of the page's body or the row's text."""
    masked: dict[str, int] = field(default_factory=dict)
    """Personal data that was masked, by kind, and what spelled a special token ("special_token")."""


Item = tuple[dict[str, Any], Path | None, PrepareOptions]


def prepare(batch: Batch) -> tuple[str, list[Candidate]]:
    """(source, candidates in the order of the rows). Never raises for what a page holds.

    Raises `BadInput` for a rule that cannot be used.
    """
    items: list[Item] = [(row, batch.warc, batch.options) for row in batch.rows]
    return batch.source, isolated(candidate, items, seconds=batch.options.timeout, failed=_lost)


def _lost(item: Item, reason: str) -> Candidate:
    row = item[0]
    return Candidate(row["url"], "", reason, group=row.get("group"), digest=row.get("digest"))


def candidate(item: Item) -> Candidate:
    """One row's document. It may take very long, or end the process: `prepare` guards against both."""
    row, warc, options = item
    if "record" in row:
        content: bytes | str | None = _body(io.BytesIO(row["record"]), row, options.max_bytes)
    else:
        content = recorded(row, warc, options.max_bytes) if warc else row["text"] or ""
    if content is None:
        return _lost(item, "unreadable_record")
    about: dict[str, Any] = {"group": row.get("group"), "digest": row.get("digest") or _digest(content)}
    try:
        text, head = _text(row, content, options)
    except Unreadable as error:
        return Candidate(row["url"], "", str(error), **about)
    except RecursionError:
        return Candidate(row["url"], "", "too_deep", **about)
    reason, text = judge(text, options.filters) if text else ("no_text", "")
    language = head.language
    if reason is None and (options.languages or options.record_language):
        language, probability = language_of(text)
        if options.languages and (language not in options.languages or probability < options.language_threshold):
            reason = "language"
    text, masked = _masked(text if reason is None else text[:EXCERPT], options)
    if reason is not None:
        return Candidate(row["url"], text, reason, language=language, **about)
    title = head.title or row.get("title")
    return Candidate(
        row["url"],
        text,
        title=mask(repair(title), options.personal)[0] if title else None,
        language=language,
        licence=head.licence or row.get("licence"),
        date=head.date or row.get("date"),
        masked=masked,
        **about,
    )


def _digest(content: bytes | str) -> str:
    return xxhash.xxh3_128_hexdigest(content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content)


def _masked(text: str, options: PrepareOptions) -> tuple[str, dict[str, int]]:
    text, counts = mask(text, options.personal)
    text, parted = part_special_tokens(text)
    return text, counts | ({"special_token": parted} if parted else {})


def recorded(row: dict[str, Any], folder: Path, max_bytes: int) -> bytes | None:
    """The body of a record by segment and offset, at most a byte more than is parsed; None if it cannot be read."""
    with open(folder / row["segment"], "rb") as file:
        file.seek(row["offset"])
        return _body(file, row, max_bytes)


def _body(file: BinaryIO, row: dict[str, Any], max_bytes: int) -> bytes | None:
    try:
        record = next(iter(ArchiveIterator(file, parse_http=True)), None)
        most = size_limit(row.get("content_type"), max_bytes)
        body: bytes | None = record.reader.read(most + 1) if record is not None else None
    except Exception:  # whatever the reader raises over a damaged record costs that record
        return None
    return body


def _text(row: dict[str, Any], content: bytes | str, options: PrepareOptions) -> tuple[str, Metadata]:
    page = read(content, row.get("content_type"), options.max_bytes)
    if not isinstance(page, Page):
        return _mended(page, options), Metadata()
    if options.respect_noindex and forbids_indexing(page.metadata.robots, row.get("robots")):
        raise Unreadable("noindex")
    rule = rule_for(row["url"] or "", options.rules, options.rule)
    found = main_text(page, engine=options.engine, rule=rule, min_rule_characters=options.min_rule_characters)
    return _mended(found.text, options), found.metadata


def _mended(text: str, options: PrepareOptions) -> str:
    text = repair(text, options.characters)
    if text.count("\ufffd") > MOST_REPLACED * len(text):
        raise Unreadable("wrong_encoding")
    return text

"""What a worker does to a batch: read, extract, mend, filter. Each document comes back with its text or its reason."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastwarc import ArchiveIterator

from llm_core.data.characters import repair
from llm_core.data.extract import MAX_BYTES, Metadata, Page, Unreadable, deadline, main_text, read
from llm_core.data.filters import FilterOptions, judge
from llm_core.data.language import language_of
from llm_core.data.rules import rule_for

EXCERPT = 200


@dataclass(frozen=True, slots=True)
class PrepareOptions:
    """How the documents of a source are prepared."""

    rules: Path
    rule: str | None = None
    engine: str = "trafilatura"
    max_bytes: int = MAX_BYTES
    timeout: float = 20.0
    languages: tuple[str, ...] = ()
    filters: FilterOptions = field(default_factory=FilterOptions)


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of one source: pages in WARC segments under `warc`, or, without that, documents with their text."""

    source: str
    rows: Sequence[dict[str, Any]]
    options: PrepareOptions
    warc: Path | None = None


@dataclass(frozen=True, slots=True)
class Candidate:
    """A document as far as it can be judged alone: `reason` says why it is dropped, None that it may stay."""

    url: str | None
    text: str
    reason: str | None = None
    title: str | None = None
    language: str | None = None
    licence: str | None = None
    date: str | None = None
    group: str | None = None


def prepare(batch: Batch) -> tuple[str, list[Candidate]]:
    """(source, candidates in the order of the rows). Never raises for what a page holds."""
    contents = _warc_contents(batch.rows, batch.warc) if batch.warc else _own_contents(batch.rows)
    return batch.source, [
        _candidate(row, content, batch.options) for row, content in zip(batch.rows, contents, strict=True)
    ]


def _own_contents(rows: Sequence[dict[str, Any]]) -> Iterator[bytes]:
    for row in rows:
        yield (row["text"] or "").encode("utf-8", "surrogatepass")


def _warc_contents(rows: Sequence[dict[str, Any]], folder: Path) -> Iterator[bytes | None]:
    """The bodies of records by segment and offset; None for a record that cannot be read."""
    for row in rows:
        with open(folder / row["segment"], "rb") as file:
            file.seek(row["offset"])
            record = next(iter(ArchiveIterator(file, parse_http=True)), None)
            yield record.reader.read() if record is not None else None


def _candidate(row: dict[str, Any], content: bytes | None, options: PrepareOptions) -> Candidate:
    url, group = row["url"], row.get("group")
    if content is None:
        return Candidate(url, "", "unreadable_record", group=group)
    try:
        with deadline(options.timeout):
            text, head = _text(row, content, options)
    except Unreadable as error:
        return Candidate(url, "", str(error), group=group)
    except RecursionError:
        return Candidate(url, "", "too_deep", group=group)
    reason, text = judge(text, options.filters) if text else ("no_text", "")
    language = head.language
    if reason is None and options.languages:
        language = language_of(text)
        reason = None if language in options.languages else "language"
    title = head.title or row.get("title")
    licence = head.licence or row.get("licence")
    return Candidate(url, text, reason, title, language, licence, head.date, group)


def _text(row: dict[str, Any], content: bytes, options: PrepareOptions) -> tuple[str, Metadata]:
    page = read(content, row.get("content_type"), options.max_bytes)
    if not isinstance(page, Page):
        return repair(page), Metadata()
    robots = f"{page.metadata.robots or ''},{row.get('robots') or ''}".lower()
    if "noindex" in robots or "none" in robots.replace(" ", "").split(","):
        raise Unreadable("noindex")
    text = main_text(page, engine=options.engine, rule=rule_for(row["url"] or "", options.rules, options.rule))
    return repair(text or ""), page.metadata

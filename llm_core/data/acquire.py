"""acquire: crawl the web, read public datasets and files, into one directory a source."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from llm_core.artifacts import new_product
from llm_core.contract import BadInput, Emit, Note, Progress, Report, Row
from llm_core.data.sources import bookcorpus, common_crawl, embedded, problems, wikipedia
from llm_core.data.sources.download import Patience
from llm_core.data.sources.files import FileRows, FilesOptions
from llm_core.data.sources.huggingface import DatasetOptions, DatasetRows
from llm_core.data.sources.parts import Gathered, Parts, gather
from llm_core.data.sources.rows import Columns, write_rows
from llm_core.data.web.job import CrawlJob
from llm_core.data.web.store import CrawlFailed, crawl, snapshot
from llm_core.settings.acquire import (
    AcquireConfig,
    BookCorpusSource,
    CommonCrawlSource,
    EmbeddedSource,
    FilesSource,
    HuggingFaceSource,
    ProblemsSource,
    Source,
    WebSource,
    WikipediaSource,
)

Counts = dict[str, float]
DatasetSource = HuggingFaceSource | FilesSource | CommonCrawlSource | WikipediaSource | BookCorpusSource


def run(config: AcquireConfig, *, out: Path, scratch: Path, emit: Emit) -> Report:
    """Fill `out` with one directory a source: WARC segments and pages.parquet, or rows as Parquet."""
    facts: dict[str, Any] = {"sources": {}}
    table: list[Row] = []
    unreadable: list[Row] = []
    with new_product(out, "raw", facts) as product:
        for source in config.sources:
            folder = product / source.name
            folder.mkdir()
            gathered = _acquire(source, config, folder, scratch, emit)
            counts = gathered.counts
            for note in gathered.notes:
                emit(Note(note))
            unreadable += [{"source": source.name, **row} for row in gathered.unreadable]
            if not any(counts.get(unit) for unit in ("pages", "documents", "dialogues", "preferences")):
                raise BadInput(f"acquire.sources: {source.name!r} gave nothing ({_how_it_ended(counts)})")
            about = {"kind": source.kind, "licence": source.licence, "weight": getattr(source, "weight", 1.0)}
            facts["sources"][source.name] = {**about, **counts, **gathered.facts}
            table.append({"source": source.name, "kind": source.kind, "licence": source.licence, **counts})
    units = ("pages", "documents", "dialogues", "preferences")
    metrics = {unit: float(sum(float(str(row.get(unit, 0))) for row in table)) for unit in units}
    return Report(metrics=metrics, tables={"sources": table, **({"unreadable": unreadable} if unreadable else {})})


def _how_it_ended(counts: Counts) -> str:
    return ", ".join(f"{name}: {count:g}" for name, count in counts.items()) or "no rows"


def _acquire(source: Source, config: AcquireConfig, folder: Path, scratch: Path, emit: Emit) -> Gathered:
    match source:
        case EmbeddedSource():
            return Gathered(_embedded(source, config, folder, scratch, emit))
        case WebSource():
            return Gathered(_web(source, config, folder, scratch, emit))
        case ProblemsSource():
            rows = problems.rows(problems.generate(source.count, source.seed, source.operations))
            return Gathered({"dialogues": write_rows(folder, "dialogues", rows)})
        case _:
            return _dataset(source, config, folder, scratch, emit)


def _embedded(source: EmbeddedSource, config: AcquireConfig, folder: Path, scratch: Path, emit: Emit) -> Counts:
    rendered = scratch / f"{source.name}-site"
    emit(Progress(0, None, "pages", {"source": source.name, "doing": "rendering the documentation"}))
    shutil.rmtree(rendered, ignore_errors=True)
    rendered.mkdir(parents=True)
    site = embedded.render(rendered, source.modules, source.topics)
    store = config.store / source.name / site.digest[:16]
    with embedded.serve(site) as proxy:
        job = CrawlJob(
            store=str(store),
            start=(embedded.url_of("index.html"),),
            contact="the embedded crawl of this machine",
            max_pages=10_000,
            delay=0.0,
            concurrency=source.concurrency,
            proxy=proxy,
            refresh=config.refresh,
        )
        counts = _crawl(job, source.name, site.pages, scratch, emit)
    pages = snapshot(job, folder, licence=source.licence, group_of=embedded.group_of)
    rows = [
        {
            "url": embedded.url_of(pair["page"]),
            "group": embedded.group_of(embedded.url_of(pair["page"])),
            "kind": "docstring",
            "messages": [
                {"role": "user", "content": pair["question"]},
                {"role": "assistant", "content": pair["answer"]},
            ],
            "check": None,
        }
        for pair in site.dialogues
    ]
    return {"pages": pages, "dialogues": write_rows(folder, "dialogues", rows), **counts}


def _web(source: WebSource, config: AcquireConfig, folder: Path, scratch: Path, emit: Emit) -> Counts:
    store = config.store / source.name
    job = CrawlJob(
        store=str(store),
        start=source.start,
        contact=source.contact,
        hosts=source.hosts,
        allow=source.allow,
        deny=source.deny,
        max_pages=source.max_pages,
        max_pages_per_host=source.max_pages_per_host,
        depth=source.depth,
        delay=source.delay_seconds,
        concurrency=source.concurrency,
        timeout=source.timeout_seconds,
        max_bytes=source.max_bytes,
        refresh=config.refresh,
    )
    counts = _crawl(job, source.name, source.max_pages, scratch, emit)
    return {"pages": snapshot(job, folder, licence=source.licence), **counts}


def _crawl(job: CrawlJob, name: str, expected: int, scratch: Path, emit: Emit) -> Counts:
    """Run the crawl, its counts shown; returns pages by outcome."""
    last: dict[str, Any] = {}
    with closing(crawl(job, scratch)) as lines:
        for last in lines:
            figures = {"source": name, "waiting": last["waiting"], "megabytes": round(last["bytes"] / 1e6, 1)}
            emit(Progress(last["stored"], expected, "pages", figures))
    if last.get("reason") != "finished":
        emit(Note(f"the crawl of {name} was asked to end"))
        raise CrawlFailed(f"the crawl of {name} ended early ({last.get('reason')}); a rerun goes on from there")
    return {outcome: float(count) for outcome, count in last["outcomes"].items() if outcome != "stored"}


def _dataset(source: DatasetSource, config: AcquireConfig, folder: Path, scratch: Path, emit: Emit) -> Gathered:
    """A public dataset or local files; a killed run goes on behind the rows or files that it has."""

    def tell(done: int, figures: dict[str, str | float] | None = None, unit: str = "rows") -> None:
        emit(Progress(done, source.limit, unit, {"source": source.name, **(figures or {})}))

    if isinstance(source, CommonCrawlSource):
        selection = common_crawl.CrawlSelection(
            source=source.name,
            prefix=source.prefix,
            listing=source.listing.replace("{crawl}", source.crawl),
            files=source.files,
            pages=source.limit,
            hosts=source.hosts,
            languages=source.languages,
            mime=source.mime,
            max_bytes=source.max_bytes,
            downloads=source.downloads,
            patience=Patience(timeout=source.timeout_seconds),
        )
        store = config.store / source.name
        return common_crawl.gather(selection, store, folder, source.licence, lambda n, more: tell(n, more, "pages"))
    parts = Parts(scratch / f"{source.name}-rows")
    rows = _resumable(source, parts, scratch, lambda done: tell(done, unit="bytes"))
    what = "documents" if getattr(source, "holds", "text") == "text" else source.holds  # type: ignore[union-attr]
    gathered = gather(
        parts, folder, what, rows, limit=source.limit, licence=source.licence, facts=rows.facts, tell=tell
    )
    if isinstance(source, BookCorpusSource):
        gathered.notes.append(f"{source.name}: {bookcorpus.WARNING}")
    for row in gathered.unreadable[:10]:
        gathered.notes.append(f"{source.name}: {row['file']} was left out: {row['problem']}")
    return gathered


def _resumable(
    source: DatasetSource, parts: Parts, scratch: Path, tell: Callable[[int], None]
) -> DatasetRows | FileRows | wikipedia.DumpRows | bookcorpus.BookRows:
    """The rows of a source; `tell` gets the bytes of a download that must come first."""
    match source:
        case HuggingFaceSource():
            columns = Columns(**source.columns.model_dump())
            where = (source.path, source.config, source.split, source.revision)
            return DatasetRows(DatasetOptions(source.name, *where, source.holds, columns), parts)
        case FilesSource():
            columns = Columns(**source.columns.model_dump())
            return FileRows(FilesOptions(source.name, source.paths, source.holds, columns, source.max_bytes))
        case WikipediaSource(dump=str(dump)):
            path = wikipedia.fetched(source.name, dump, scratch / f"{source.name}-dump", tell)
            return wikipedia.DumpRows(source.name, path, source.language, source.workers)
        case WikipediaSource():
            version = f"{source.date}.{source.language}"
            columns = Columns(title="title", url="url")
            return DatasetRows(
                DatasetOptions(source.name, source.path, version, "train", source.revision, columns=columns), parts
            )
        case BookCorpusSource():
            options = DatasetOptions(
                source.name, source.path, None, source.split, source.revision, columns=Columns(text=source.column)
            )
            return bookcorpus.BookRows(options, source.sentences, parts)
    raise AssertionError(source)

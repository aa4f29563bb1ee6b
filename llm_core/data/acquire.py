"""acquire: crawl the web, read public datasets and files, into one directory a source."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from llm_core.contract import BadInput, Emit, Note, Progress, Report, Row
from llm_core.data import forget_list
from llm_core.data.forget_raw import sweep
from llm_core.data.sources import bookcorpus, common_crawl, embedded, problems, wikipedia
from llm_core.data.sources.download import Patience
from llm_core.data.sources.files import FileRows, FilesOptions
from llm_core.data.sources.huggingface import DatasetOptions, DatasetRows
from llm_core.data.sources.parts import Gathered, Parts, gather
from llm_core.data.sources.rows import Columns, write_rows
from llm_core.data.web.job import CrawlJob
from llm_core.data.web.results import (
    Crawled,
    counts_of_diffs,
    endings,
    how_it_ended,
    rows_of_diffs,
    rows_of_outcomes,
    unreached,
)
from llm_core.data.web.seed import SEEDED
from llm_core.data.web.store import CrawlFailed, crawl, delivered, snapshot
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
from llm_core.storage import products

Counts = dict[str, float]
DatasetSource = HuggingFaceSource | FilesSource | CommonCrawlSource | WikipediaSource | BookCorpusSource


def run(config: AcquireConfig, *, forget: Path | None = None, out: Path, scratch: Path, emit: Emit) -> Report:
    """Fill `out` with one directory a source: WARC segments and pages.parquet, or rows as Parquet.

    What the list in the file `forget` names is not asked for, and taken out of what is there.
    """
    forgotten = forget_list.read(forget)
    products.begin(config.storage.url)
    facts: dict[str, Any] = {"sources": {}}
    table: list[Row] = []
    unreadable: list[Row] = []
    crawls: list[Crawled] = []
    lost: list[str] = []
    with products.new_product(out, "raw", facts, partial=scratch / "partial", url=config.storage.url) as making:
        for source in config.sources:
            folder = making.folder / source.name
            folder.mkdir()
            gathered = _acquire(source, config, folder, scratch, emit, crawls, forget)
            counts = gathered.counts
            for kind, count in sweep(folder, forgotten).items():
                counts |= {kind: counts[kind] - count, f"forgotten {kind}": float(count)}
                lost.append(source.name)
            for note in gathered.notes:
                emit(Note(note))
            unreadable += [{"source": source.name, **row} for row in gathered.unreadable]
            if not any(counts.get(unit) for unit in ("pages", "documents", "dialogues", "preferences")):
                raise BadInput(f"acquire.sources: {source.name!r} gave nothing ({_how_it_ended(counts)})")
            about = {"kind": source.kind, "licence": source.licence, "weight": source.weight}
            facts["sources"][source.name] = {**about, **counts, **gathered.facts}
            ended = endings(crawls[-1]) if crawls and crawls[-1].source == source.name else {}
            table.append({"source": source.name, "kind": source.kind, "licence": source.licence, **counts, **ended})
    for crawled in crawls:
        delivered(crawled.job)
    for name in lost:  # what was gathered to go on with after a kill holds it still
        for path in scratch.glob(f"{name}-*"):
            shutil.rmtree(path, ignore_errors=True)
    units = ("pages", "documents", "dialogues", "preferences")
    metrics = {unit: float(sum(float(str(row.get(unit, 0))) for row in table)) for unit in units}
    tables: dict[str, list[Row]] = {"sources": table}
    if unreadable:
        tables["unreadable"] = unreadable
    if crawls:
        tables["outcomes"] = [*rows_of_outcomes(crawls)]
    if crawls and config.refresh:
        tables["refresh"] = [*rows_of_diffs(crawls)]
        metrics |= counts_of_diffs(crawls)
    return Report(metrics=metrics, tables=tables)


def _how_it_ended(counts: Counts) -> str:
    return ", ".join(f"{name}: {count:g}" for name, count in counts.items()) or "no rows"


def _acquire(
    source: Source,
    config: AcquireConfig,
    folder: Path,
    scratch: Path,
    emit: Emit,
    crawls: list[Crawled],
    forget: Path | None,
) -> Gathered:
    """Fill a source's folder; a crawl is added to `crawls`."""
    match source:
        case EmbeddedSource():
            return _embedded(source, config, folder, scratch, emit, crawls, forget)
        case WebSource():
            job = web_job(source, config.store / source.name, refresh=config.refresh, forget=forget)
            crawled = _crawl(source.name, job, source.max_pages, scratch, emit)
            return _snapshot(crawled, folder, source.licence, crawls)
        case ProblemsSource():
            rows = problems.rows(problems.generate(source.count, source.seed, source.operations))
            return Gathered({"dialogues": write_rows(folder, "dialogues", rows)})
        case _:
            return _dataset(source, config, folder, scratch, emit)


def _embedded(
    source: EmbeddedSource,
    config: AcquireConfig,
    folder: Path,
    scratch: Path,
    emit: Emit,
    crawls: list[Crawled],
    forget: Path | None,
) -> Gathered:
    rendered = scratch / f"{source.name}-site"
    emit(Progress(0, None, "pages", {"source": source.name, "doing": "rendering the documentation"}))
    shutil.rmtree(rendered, ignore_errors=True)
    rendered.mkdir(parents=True)
    site = embedded.render(rendered, source.modules, source.topics)
    store = config.store / source.name / site.digest[:16]
    if not store.exists() and (seeded := config.store / source.name / SEEDED).exists():
        seeded.rename(store)
    with embedded.serve(site) as proxy:
        job = CrawlJob(
            store=str(store),
            start=(embedded.url_of("index.html"),),
            contact="the embedded crawl of this machine",
            max_pages=10_000,
            delay=0.0,
            concurrency=source.concurrency,
            proxy=proxy,
            respect=("nofollow",),  # the index says noindex: clean leaves it out
            refresh=config.refresh,
            forget=str(forget) if forget else None,
        )
        ended = _crawl(source.name, job, site.pages, scratch, emit)
    gathered = _snapshot(ended, folder, source.licence, crawls, embedded.group_of)
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
    gathered.counts["dialogues"] = write_rows(folder, "dialogues", rows)
    return gathered


def web_job(source: WebSource, store: Path, *, refresh: bool = False, forget: Path | None = None) -> CrawlJob:
    """The crawl that a web source's settings describe, into a store."""
    return CrawlJob(
        store=str(store),
        start=source.start,
        contact=source.contact,
        hosts=source.hosts,
        allow=source.allow,
        deny=source.deny,
        allow_private=source.allow_private,
        respect=source.respect,
        sitemaps=source.sitemaps,
        max_pages=source.max_pages,
        max_pages_per_host=source.max_pages_per_host,
        max_requests=source.max_requests,
        depth=source.depth,
        delay=source.delay_seconds,
        max_crawl_delay=source.max_crawl_delay_seconds,
        max_retry_after=source.max_retry_after_seconds,
        concurrency=source.concurrency,
        total_concurrency=source.total_concurrency,
        target_concurrency=source.target_concurrency,
        timeout=source.timeout_seconds,
        max_bytes=source.max_bytes,
        refresh=refresh,
        forget=str(forget) if forget else None,
    )


def _crawl(
    name: str, job: CrawlJob, expected: int, scratch: Path, emit: Emit
) -> tuple[str, CrawlJob, list[dict[str, Any]]]:
    """Run the crawl, its counts shown; returns the source's name, the job, and how its URLs ended."""
    last: dict[str, Any] = {}
    with closing(crawl(job, scratch)) as lines:
        for last in lines:
            figures = {"source": name, "waiting": last["waiting"], "megabytes": round(last["bytes"] / 1e6, 1)}
            emit(Progress(last["stored"], expected, "pages", figures))
    if last.get("reason") != "finished":
        emit(Note(f"the crawl of {name} was asked to end"))
        raise CrawlFailed(f"the crawl of {name} ended early ({last.get('reason')}); a rerun goes on from there")
    outcomes: list[dict[str, Any]] = last["examples"]
    if why := unreached(outcomes, last["answered"]):
        if not last["copies"]:
            raise BadInput(f"acquire.sources: {name!r} gave nothing: {why}")
        if job.refresh:
            raise CrawlFailed(f"the refresh of {name} got no answer: {why}")
    return name, job, outcomes


def _snapshot(
    ended: tuple[str, CrawlJob, list[dict[str, Any]]],
    folder: Path,
    licence: str,
    crawls: list[Crawled],
    group_of: Callable[[str], str] | None = None,
) -> Gathered:
    """The store's pages as the product has them. The manifest learns their number alone: outcomes come and go."""
    name, job, outcomes = ended
    taken = snapshot(job, folder, source=name, licence=licence, group_of=group_of)
    if not taken.pages:
        raise BadInput(f"acquire.sources: {name!r} gave nothing ({how_it_ended(outcomes)})")
    crawls.append(Crawled(name, job, taken.pages, outcomes, taken.diff))
    return Gathered({"pages": taken.pages})


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

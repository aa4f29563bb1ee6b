"""acquire: crawl the web, read public datasets and files, into one directory a source."""

from __future__ import annotations

import shutil
from contextlib import closing
from pathlib import Path
from typing import Any

from llm_core.artifacts import new_product
from llm_core.contract import BadInput, Emit, Note, Progress, Report, Row
from llm_core.data.sources import embedded, files, huggingface, problems
from llm_core.data.sources.rows import Columns, shape, write_rows
from llm_core.data.web.job import CrawlJob
from llm_core.data.web.store import CrawlFailed, crawl, snapshot
from llm_core.settings.acquire import (
    AcquireConfig,
    EmbeddedSource,
    FilesSource,
    HuggingFaceSource,
    ProblemsSource,
    Source,
    WebSource,
)

Counts = dict[str, float]


def run(config: AcquireConfig, *, out: Path, scratch: Path, emit: Emit) -> Report:
    """Fill `out` with one directory a source: WARC segments and pages.parquet, or rows as Parquet."""
    facts: dict[str, Any] = {"sources": {}}
    table: list[Row] = []
    with new_product(out, "raw", facts) as product:
        for source in config.sources:
            folder = product / source.name
            folder.mkdir()
            counts = _acquire(source, config, folder, scratch, emit)
            if not any(counts.get(unit) for unit in ("pages", "documents", "dialogues", "preferences")):
                raise BadInput(f"acquire.sources: {source.name!r} gave nothing ({_how_it_ended(counts)})")
            facts["sources"][source.name] = {"kind": source.kind, "licence": source.licence, **counts}
            table.append({"source": source.name, "kind": source.kind, "licence": source.licence, **counts})
    units = ("pages", "documents", "dialogues", "preferences")
    metrics = {unit: float(sum(float(str(row.get(unit, 0))) for row in table)) for unit in units}
    return Report(metrics=metrics, tables={"sources": table})


def _how_it_ended(counts: Counts) -> str:
    return ", ".join(f"{name}: {count:g}" for name, count in counts.items()) or "no rows"


def _acquire(source: Source, config: AcquireConfig, folder: Path, scratch: Path, emit: Emit) -> Counts:
    match source:
        case EmbeddedSource():
            return _embedded(source, config, folder, scratch, emit)
        case WebSource():
            return _web(source, config, folder, scratch, emit)
        case ProblemsSource():
            rows = problems.rows(problems.generate(source.count, source.seed, source.operations))
            return {"dialogues": write_rows(folder, "dialogues", rows)}
        case HuggingFaceSource() | FilesSource():
            return _rows(source, folder, emit)


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


def _rows(source: HuggingFaceSource | FilesSource, folder: Path, emit: Emit) -> Counts:
    columns = Columns(**source.columns.model_dump())
    if isinstance(source, HuggingFaceSource):
        stream = huggingface.rows(source.path, source.config, source.split, source.revision)
        rows = shape(stream, source.holds, columns)
    else:
        rows = files.rows(source.paths, source.holds, columns)
    what = "documents" if source.holds == "text" else source.holds

    def tell(count: int) -> None:
        emit(Progress(count, source.limit, what, {"source": source.name}))

    return {what: write_rows(folder, what, rows, limit=source.limit, licence=source.licence, tell=tell)}

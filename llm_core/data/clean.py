"""clean: from raw pages and rows to documents, dialogues and preferences worth reading.

Workers read, extract, mend, filter and sign each document alone, and lay it down in scratch. From their index, in the
order of source and URL, it is decided which copies stay; then the corpus is written in that order. So neither the
number of workers nor the order of the raw rows changes the corpus, and memory holds an index, never the texts.
Every document that is dropped stands in dropped.parquet with its reason. A run that was cut off goes on behind what its
workers had laid down.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llm_core.artifacts import digest, dump_json, read_manifest, sha256
from llm_core.cluster import Crew, crew
from llm_core.contract import BadInput, Emit, Note, Progress, Report, Row
from llm_core.data import forget_list, minhash, tables
from llm_core.data.assemble import Sifting, SourceRules, decided, files, sift, sifted, write
from llm_core.data.candidates import HeldOut, Task, divided, index_of, work
from llm_core.data.characters import CharacterOptions
from llm_core.data.corpus import Tally
from llm_core.data.decontaminate import evaluation_files
from llm_core.data.dedup import Duplicates, Index
from llm_core.data.document import KINDS
from llm_core.data.filters import C4Limits, FilterOptions, FineWebLimits, QualityLimits, RepetitionLimits, UrlLists
from llm_core.data.kit import Kit
from llm_core.data.pii import MaskOptions
from llm_core.data.prepare import PrepareOptions
from llm_core.data.spill import Findings, Journal
from llm_core.settings.clean import CleanConfig, FilterSettings, SourceSettings
from llm_core.storage import products
from llm_core.storage.places import Place
from llm_core.storage.products import Blob

LARGEST_CLUSTERS = 20
ALONE_BYTES = 30_000_000
"""Below this many bytes of text, starting workers takes longer than writing the corpus."""


def run(
    config: CleanConfig,
    *,
    raw: Path,
    rules: Path,
    lists: Path,
    heldout: Path,
    forget: Path | None = None,
    out: Path,
    scratch: Path,
    emit: Emit,
) -> Report:
    """Write the corpus: documents, dialogues, preferences and what was dropped, as Parquet.

    What the list in the file `forget` names is dropped as "forgotten", and leaves no excerpt.
    """
    forget_list.read(forget)  # what is wrong with the list is said before the work begins
    products.begin(config.storage.url)
    inputs = Inputs(raw.resolve(), rules.resolve(), lists.resolve(), heldout.resolve(), forget and forget.resolve())
    away = config.storage.url if config.cluster.kind == "dask" else None  # workers elsewhere see only the store
    sources = _sources(config, raw)
    scratch = scratch.resolve()  # workers may have another current directory
    records = products.scratch(away, scratch, "records")
    journal = Journal(scratch / "records", _key(config, raw, forget), records)
    found = Findings(scratch / "records")
    with crew(config.cluster.kind, config.cluster.address, config.workers) as workers:
        there = products.reachable(inputs.raw, "raw", away)
        tasks = _tasks(config, sources, inputs, there, records, away)
        _find(found, journal, tasks, workers, _rows_of(there, sources), emit)
        index, signature = found.ordered()
        copies = _copies(config, index, signature, found.signatures)
        facts = _facts(config, raw)
        partial, url = scratch / "partial", config.storage.url
        with products.new_product(out.resolve(), "corpus", facts, partial=partial, url=url) as making:
            tally, removed = _written(config, sources, decided(index, copies), records, making, workers, emit)
            facts |= {**tally.facts(), **removed}
            if not tally.total("documents") and not tally.total("dialogues"):
                why = tally.commonest()
                raise BadInput(f"clean: nothing is left of {len(index)} pages and rows; the commonest reason is {why}")
    products.cleared(records, scratch, "records")
    return _report(tally, _clusters(copies, index, sources), workers.table("rows"))


@dataclass(frozen=True, slots=True)
class Inputs:
    """What is read beside the settings."""

    raw: Path
    rules: Path
    lists: Path
    heldout: Path
    forget: Path | None

    def named(self) -> dict[str, Path]:
        """What workers need of it beside the raw data."""
        found = {"rules": self.rules, "lists": self.lists, "heldout": self.heldout}
        return found | ({"forget": self.forget} if self.forget and self.forget.is_file() else {})


def _sources(config: CleanConfig, raw: Path) -> list[str]:
    """The sources of the raw data, sorted; a setting for one that is not there is refused."""
    sources = sorted(read_manifest(raw, "raw")["facts"]["sources"])
    if unknown := sorted(set(config.sources) - set(sources) - set(CleanConfig().sources)):
        raise BadInput(f"clean.sources: {unknown[0]!r} is no source of acquire; those are {', '.join(sources)}")
    return sources


def _key(config: CleanConfig, raw: Path, forget: Path | None) -> str:
    """Names what the records of a run say, so far as `scratch` itself may hold those of another."""
    settings = config.model_dump(mode="json", exclude=set(config.how))
    return hashlib.sha256(dump_json([settings, digest(raw), sha256(forget) if forget else None])).hexdigest()


def _files(there: Mapping[str, Blob], sources: Sequence[str]) -> Iterator[tuple[int, str, Blob]]:
    for number, source in enumerate(sources):
        for table in ("pages", *KINDS):
            if blob := there.get(f"{source}/{table}.parquet"):
                yield number, table, blob


def _rows_of(there: Mapping[str, Blob], sources: Sequence[str]) -> int:
    return sum(tables.metadata(blob).num_rows for _, _, blob in _files(there, sources))


def _tasks(
    config: CleanConfig,
    sources: Sequence[str],
    inputs: Inputs,
    there: Mapping[str, Blob],
    records: Place,
    away: str | None,
) -> Iterator[Task]:
    held_out = _held_out(config, inputs.heldout)
    options = [_options(config, _settings(config, source), inputs.rules, inputs.lists) for source in sources]
    kit = Kit.packed(inputs.named(), records.below("kit")) if away else None
    for number, table, file in _files(there, sources):
        name = sources[number]
        task = Task(
            source=number,
            name=name,
            table=table,
            file=file,
            spill=records,
            options=options[number],
            shares=(config.validation_share, config.feedback_share),
            held_out=held_out,
            near_duplicates=config.near_duplicates.drop,
            forget=inputs.forget,
            warc=None if table != "pages" or file.place.remote else inputs.raw / name / "warc",
            kit=kit,
        )
        prefix = f"{name}/warc/"
        segments = {key.removeprefix(prefix): blob for key, blob in there.items() if key.startswith(prefix)}
        yield from divided(task, segments if file.place.remote else None)


def _held_out(config: CleanConfig, folder: Path) -> HeldOut:
    settings = config.decontamination
    files = tuple(evaluation_files(folder))
    sets = HeldOut(
        files=files,
        versions=tuple((path.stat().st_mtime_ns, path.stat().st_size) for path in files),
        n=settings.n,
        shortest=settings.shortest,
        fields=tuple(sorted(settings.fields.items())),
    )
    index_of(sets)  # what is wrong with a set is said before the work begins
    return sets


def _settings(config: CleanConfig, source: str) -> SourceSettings:
    return config.sources.get(source, config.default)


def _options(config: CleanConfig, settings: SourceSettings, rules: Path, lists: Path) -> PrepareOptions:
    return PrepareOptions(
        rules=rules,
        rule=settings.rule,
        engine=settings.engine or config.engine,
        min_rule_characters=settings.rule_min_characters,
        respect_noindex=settings.respect_noindex,
        max_bytes=config.max_html_bytes,
        timeout=config.timeout_seconds,
        characters=CharacterOptions(settings.characters.punctuation, settings.characters.case),
        personal=MaskOptions(**dict(settings.personal_data)),
        languages=settings.languages,
        language_threshold=settings.language_threshold,
        record_language=settings.record_language,
        filters=_filters(settings.filters, lists),
    )


def _filters(settings: FilterSettings, lists: Path) -> FilterOptions:
    def listed(names: Iterable[str]) -> tuple[Path, ...]:
        for name in names:
            if not (lists / name).is_file():
                raise BadInput(f"clean: filters name the list {name!r}, which is not in {lists}")
        return tuple(lists / name for name in names)

    named = settings.urls
    return FilterOptions(
        min_words=settings.min_words,
        gopher_quality=settings.gopher_quality,
        gopher_repetition=settings.gopher_repetition,
        c4_quality=settings.c4_quality,
        c4_paragraphs=settings.c4_paragraphs,
        fineweb_quality=settings.fineweb_quality,
        mode=settings.mode,
        quality=QualityLimits(**dict(settings.quality)),
        repetition=RepetitionLimits(**dict(settings.repetition)),
        c4=C4Limits(**dict(settings.c4)),
        fineweb=FineWebLimits(**dict(settings.fineweb)),
        bad_words=listed(settings.bad_words),
        urls=UrlLists(
            domains=listed(named.domains),
            urls=listed(named.urls),
            banned_words=listed(named.banned_words),
            soft_banned_words=listed(named.soft_banned_words),
            banned_subwords=listed(named.banned_subwords),
            soft_words=named.soft_words,
        ),
    )


def _rules_of(config: CleanConfig, source: str) -> SourceRules:
    settings = _settings(config, source)
    return SourceRules(
        source, settings.drop_repeated_paragraphs, settings.drop_repeated_lines, settings.filters.min_words
    )


def _find(found: Findings, journal: Journal, tasks: Iterable[Task], workers: Crew, total: int, emit: Emit) -> None:
    """Let workers prepare all rows that the journal does not have."""
    done = kept = before = 0
    for batch in journal.read():
        found.add(batch)
        before, done, kept = before + 1, done + batch.num_rows, kept + batch["reason"].null_count
    if before:
        emit(Note(f"goes on behind {done:,} rows that were prepared before"))
    for rows, batch in workers.map(work, islice(tasks, before, None), units=lambda result: result[0]):
        journal.add(batch)
        found.add(batch)
        done += rows
        kept += batch["reason"].null_count
        emit(Progress(done, total, "rows", {"kept": kept, **workers.figures()}))


def _written(
    config: CleanConfig,
    sources: Sequence[str],
    index: pa.Table,
    records: Place,
    making: products.Making,
    workers: Crew,
    emit: Emit,
) -> tuple[Tally, dict[str, int]]:
    """Let workers write the corpus from its decided index; what was counted, and the pieces that were removed."""
    weight = pc.sum(index["size"]).as_py() or 0
    alone = config.cluster.kind == "processes" and weight < ALONE_BYTES
    crew_of_files = Crew(1) if alone else workers
    emit(Progress(0, len(index), "rows written"))
    rules = tuple(_rules_of(config, source) for source in sources)

    def removing(job: Sifting) -> dict[str, int]:
        (found,) = crew_of_files.map(sift, [job], units=lambda _: 0)
        return found

    index, removed = sifted(index, Sifting(records, rules, config.drop_duplicates), removing)
    tally, done = Tally(), 0
    jobs = files(index, records, making.output, sources, config.validation_share)
    for written in crew_of_files.map(write, jobs, units=lambda _: 0):
        making.add(written.name, written.entry)
        tally.add(written.tally)
        done += written.rows
        emit(Progress(done, len(index), "rows written", {"kept": tally.total("documents")}))
    return tally, removed


def _copies(config: CleanConfig, index: pa.Table, signature: np.ndarray, file: Path) -> Duplicates:
    """Decide which copies stay: by URL, then by text, then by likeness."""
    copies = Duplicates(Index.of(index, signature))
    good = pc.is_null(index["reason"]).to_numpy()
    documents = np.flatnonzero(good & (index["kind"].to_numpy() == 0))
    if config.drop_duplicates:
        documents = copies.by_identity(copies.by_address(documents))
    if config.near_duplicates.drop:
        copies.by_likeness(documents, file, config.near_duplicates.threshold)
    copies.by_identity(np.flatnonzero(good & (index["kind"].to_numpy() > 0)))
    return copies


def _facts(config: CleanConfig, raw: Path) -> dict[str, Any]:
    """How it was done, for the manifest."""
    about = read_manifest(raw)["facts"]["sources"]
    near = {"algorithm": minhash.ALGORITHM, "threshold": config.near_duplicates.threshold}
    return {
        "id": "xxh3-128 of lower-case text, white space squeezed",
        "digest": "xxh3-128 of the raw page's body or row",
        "split": "xxh3-64 of the group",
        "near_duplicates": near if config.near_duplicates.drop else None,
        "weights": {name: float(source.get("weight", 1.0)) for name, source in sorted(about.items())},
    }


def _clusters(copies: Duplicates, index: pa.Table, sources: Sequence[str]) -> list[Row]:
    """The largest groups of copies, with the URL that stays and some of those that do not."""
    leaders = copies.leaders()
    lost = np.flatnonzero(copies.of >= 0)
    stays, counts = np.unique(leaders[lost], return_counts=True)
    largest = [
        (leader, lost[leaders[lost] == leader].tolist())
        for leader in stays[np.lexsort((stays, -counts))][:LARGEST_CLUSTERS].tolist()
    ]
    url = index["url"]
    return [
        {
            "copies": len(places),
            "how": ", ".join(
                f"{reason} {count}" for reason, count in sorted(Counter(map(copies.reason, places)).items())
            ),
            "source": sources[index["source"][leader].as_py()],
            "kept": url[leader].as_py(),
            "dropped": " ".join(url[place].as_py() for place in sorted(places)[:3]),
        }
        for leader, places in largest
    ]


def _report(tally: Tally, clusters: list[Row], workers: list[Row]) -> Report:
    funnel: list[Row] = [
        {
            "what": what,
            "source": source,
            "in": count,
            "kept": tally.kept[what, source],
            "text_bytes": tally.text_bytes[source] if what == "documents" else None,
        }
        for (what, source), count in sorted(tally.seen.items())
    ]
    reasons: list[Row] = [
        {"what": what, "source": source, "reason": reason, "dropped": count}
        for (what, source, reason), count in tally.reasons.most_common()
    ]
    splits: list[Row] = [
        {"what": what, "split": split, "count": count} for (what, split), count in sorted(tally.splits.items())
    ]
    metrics = {name: float(tally.total(name)) for name in KINDS}
    metrics |= {"dropped": float(tally.reasons.total()), "text_bytes": float(tally.text_bytes.total())}
    metrics["near_duplicates"] = float(
        sum(count for (_, _, reason), count in tally.reasons.items() if reason == "near_duplicate")
    )
    masked: list[Row] = [
        {"source": source, "kind": kind, "count": count} for (source, kind), count in sorted(tally.masked.items())
    ]
    hits: list[Row] = [{"set": name, "hits": count} for name, count in sorted(tally.hits.items())]
    tables = {"funnel": funnel, "reasons": reasons, "splits": splits}
    tables |= {"clusters": clusters, "masked": masked, "contamination": hits, "workers": workers}
    return Report(metrics=metrics, tables={name: rows for name, rows in tables.items() if rows})

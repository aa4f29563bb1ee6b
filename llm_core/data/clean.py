"""clean: from raw pages and rows to documents, dialogues and preferences worth reading.

Workers read, extract, mend and filter each document alone; what needs the others (duplicates, repeated paragraphs) is
done here, in the order of source and URL, so that the number of workers never changes the corpus. Every document that
is dropped stands in dropped.parquet with its reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from llm_core.artifacts import new_product, read_manifest
from llm_core.contract import BadInput, Emit, Progress, Report, Row
from llm_core.data import dialogues
from llm_core.data.dedup import Paragraphs, Seen
from llm_core.data.document import DIALOGUES, DOCUMENTS, DROPPED, PREFERENCES, identity, split_of
from llm_core.data.filters import FilterOptions, too_short
from llm_core.data.prepare import EXCERPT, Batch, Candidate, PrepareOptions, prepare
from llm_core.parallel import batched, map_ordered
from llm_core.settings.clean import CleanConfig, SourceSettings

BATCH_DOCUMENTS = 16
ROW_GROUP = 1_000
SCHEMAS = {"documents": DOCUMENTS, "dialogues": DIALOGUES, "preferences": PREFERENCES, "dropped": DROPPED}


def run(
    config: CleanConfig,
    *,
    raw: Path,
    rules: Path,
    lists: Path,  # noqa: ARG001
    heldout: Path,  # noqa: ARG001
    out: Path,
    scratch: Path,  # noqa: ARG001
    emit: Emit,
) -> Report:
    """Write the corpus: documents, dialogues, preferences and what was dropped, as Parquet."""
    raw, rules = raw.resolve(), rules.resolve()  # workers may have another current directory
    sources = sorted(read_manifest(raw, "raw")["facts"]["sources"])
    if unknown := sorted(set(config.sources) - set(sources) - set(CleanConfig().sources)):
        raise BadInput(f"clean.sources: {unknown[0]!r} is no source of acquire; those are {', '.join(sources)}")
    facts: dict[str, Any] = {"id": "xxh3-128 of lower-case text, white space squeezed", "split": "xxh3-64 of the group"}
    with new_product(out, "corpus", facts) as product:
        with Corpus(product, config) as corpus:
            batches = _batches(config, raw, rules, sources)
            total = sum(pq.read_metadata(path).num_rows for path in _document_files(raw, sources))
            done = 0
            for source, candidates in map_ordered(prepare, batches, workers=config.workers):
                for candidate in candidates:
                    corpus.add_document(source, candidate)
                done += len(candidates)
                emit(Progress(done, total, "pages", {"kept": corpus.kept["documents"]}))
            for source in sources:
                _conversations(corpus, raw / source, source, emit)
        facts |= corpus.facts()
    if not facts["kept"].get("documents") and not facts["kept"].get("dialogues"):
        raise BadInput(f"clean: nothing is left of {total} pages; the commonest reason is {corpus.commonest()}")
    return _report(corpus)


def _document_files(raw: Path, sources: list[str]) -> list[Path]:
    paths = [raw / source / name for source in sources for name in ("pages.parquet", "documents.parquet")]
    return [path for path in paths if path.exists()]


def _batches(config: CleanConfig, raw: Path, rules: Path, sources: list[str]) -> Iterator[Batch]:
    for path in _document_files(raw, sources):
        source = path.parent.name
        options = _options(config, _settings(config, source), rules)
        warc = path.parent / "warc" if path.name == "pages.parquet" else None
        for rows in batched(_rows(path), BATCH_DOCUMENTS):
            yield Batch(source, rows, options, warc)


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(ROW_GROUP):
            yield from batch.to_pylist()


def _settings(config: CleanConfig, source: str) -> SourceSettings:
    return config.sources.get(source, config.default)


def _options(config: CleanConfig, settings: SourceSettings, rules: Path) -> PrepareOptions:
    return PrepareOptions(
        rules=rules,
        rule=settings.rule,
        engine=config.engine,
        max_bytes=config.max_html_bytes,
        timeout=config.timeout_seconds,
        languages=settings.languages,
        filters=FilterOptions(**settings.filters.model_dump()),
    )


def _conversations(corpus: Corpus, folder: Path, source: str, emit: Emit) -> None:
    for what in ("dialogues", "preferences"):
        if (folder / f"{what}.parquet").exists():
            for rows in batched(_rows(folder / f"{what}.parquet"), ROW_GROUP):
                for row in rows:
                    corpus.add_conversation(what, source, row)
                emit(Progress(corpus.kept[what], None, what, {"source": source}))


class Corpus:
    """The corpus under construction: what was seen, what is kept, what is dropped and why."""

    def __init__(self, folder: Path, config: CleanConfig) -> None:
        self._config = config
        self._folder = folder
        self._known, self._known_conversations = Seen(), Seen()
        self._paragraphs: dict[str, Paragraphs] = {}
        self.kept: Counter[str] = Counter()
        self.reasons: Counter[tuple[str, str, str]] = Counter()
        self.seen: Counter[tuple[str, str]] = Counter()
        self.kept_of: Counter[tuple[str, str]] = Counter()
        self.splits: Counter[tuple[str, str]] = Counter()
        self.text_bytes = 0
        self._rows: dict[str, list[dict[str, Any]]] = {name: [] for name in SCHEMAS}

    def __enter__(self) -> Corpus:
        self._stack = ExitStack()
        self._writers = {
            name: self._stack.enter_context(
                pq.ParquetWriter(self._folder / f"{name}.parquet", schema, compression="zstd")
            )
            for name, schema in SCHEMAS.items()
        }
        return self

    def __exit__(self, *error: object) -> None:
        for name in SCHEMAS:
            self._flush(name)
        self._stack.close()

    def add_document(self, source: str, candidate: Candidate) -> None:
        """Keep a document or drop it, with the reason."""
        settings = _settings(self._config, source)
        self.seen["documents", source] += 1
        text, reason = candidate.text, candidate.reason
        if reason is None:
            reason, text = self._against_others(source, text, settings)
        if reason is not None:
            self._drop("documents", source, candidate.url, reason, candidate.text)
            return
        key = identity(text)
        group = candidate.group or key
        split = split_of(group, self._config.validation_share)
        row = {"id": key, "source": source, "url": candidate.url, "title": candidate.title, "text": text}
        row |= {"language": candidate.language, "licence": candidate.licence, "date": candidate.date}
        self.text_bytes += len(text.encode())
        self._keep("documents", source, {**row, "group": group, "split": split})

    def _against_others(self, source: str, text: str, settings: SourceSettings) -> tuple[str | None, str]:
        """(reason or None, text without repeated paragraphs), given all documents before this one."""
        if self._config.drop_duplicates and not self._known.add(identity(text)):
            return "duplicate", text
        if settings.drop_repeated_paragraphs:
            fresh = self._paragraphs.setdefault(source, Paragraphs()).fresh(text)
            if fresh != text and self._config.drop_duplicates and not self._known.add(identity(fresh)):
                return "duplicate", fresh
            if too_short(fresh, settings.filters.min_words):
                return "repeats_others" if fresh != text else "too_few_words", fresh
            text = fresh
        return None, text

    def add_conversation(self, what: str, source: str, row: dict[str, Any]) -> None:
        """Keep a dialogue or preference or drop it, with the reason."""
        self.seen[what, source] += 1
        shares = (self._config.validation_share, self._config.feedback_share)
        if what == "dialogues":
            cleaned, reason = dialogues.dialogue(row, source, shares)
            first = cleaned["messages"][0]["content"] if cleaned["messages"] else ""
        else:
            cleaned, reason = dialogues.preference(row, source, shares[0])
            first = cleaned["prompt"][0]["content"] if cleaned["prompt"] else ""
        if reason is None and not self._known_conversations.add(cleaned["id"]):
            reason = "duplicate"
        if reason is not None:
            self._drop(what, source, row.get("url"), reason, first)
        else:
            self._keep(what, source, cleaned)

    def _keep(self, what: str, source: str, row: dict[str, Any]) -> None:
        self.kept[what] += 1
        self.kept_of[what, source] += 1
        self.splits[what, row["split"]] += 1
        self._append(what, row)

    def _drop(self, what: str, source: str, url: str | None, reason: str, text: str) -> None:
        self.reasons[what, source, reason] += 1
        self._append("dropped", {"source": source, "url": url, "reason": reason, "excerpt": text[:EXCERPT]})

    def _append(self, name: str, row: dict[str, Any]) -> None:
        self._rows[name].append(row)
        if len(self._rows[name]) >= ROW_GROUP:
            self._flush(name)

    def _flush(self, name: str) -> None:
        if self._rows[name]:
            self._writers[name].write_table(pa.Table.from_pylist(self._rows[name], schema=SCHEMAS[name]))
            self._rows[name].clear()

    def facts(self) -> dict[str, Any]:
        """Counts for the manifest."""
        return {
            "kept": dict(sorted(self.kept.items())),
            "dropped": {"/".join(key): count for key, count in sorted(self.reasons.items())},
            "splits": {f"{what}/{split}": count for (what, split), count in sorted(self.splits.items())},
            "text_bytes": self.text_bytes,
            "repeated_paragraphs": sum(paragraphs.removed for paragraphs in self._paragraphs.values()),
        }

    def commonest(self) -> str:
        """The reason that most documents were dropped for."""
        return max(self.reasons, key=lambda key: self.reasons[key], default=("", "", "none"))[2]


def _report(corpus: Corpus) -> Report:
    funnel: Sequence[Row] = [
        {"what": what, "source": source, "in": count, "kept": corpus.kept_of[what, source]}
        for (what, source), count in sorted(corpus.seen.items())
    ]
    reasons: Sequence[Row] = [
        {"what": what, "source": source, "reason": reason, "dropped": count}
        for (what, source, reason), count in corpus.reasons.most_common()
    ]
    splits: Sequence[Row] = [
        {"what": what, "split": split, "count": count} for (what, split), count in sorted(corpus.splits.items())
    ]
    metrics = {name: float(corpus.kept[name]) for name in ("documents", "dialogues", "preferences")}
    metrics |= {"dropped": float(corpus.reasons.total()), "text_bytes": float(corpus.text_bytes)}
    return Report(metrics=metrics, tables={"funnel": funnel, "reasons": reasons, "splits": splits})

"""tokenize: train the tokenizer on the training split, and write documents and dialogues as token shards.

Workers read and encode slices of the corpus and lay the ids down; here it is said in which order they stand, source by
source, and workers copy them into the files of the shards. So these are the same bytes for any number of workers, and
neither texts nor ids pass through here, but for the sample that the tokenizer learns from.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from llm_core.artifacts import read_manifest
from llm_core.cluster import Crew, crew
from llm_core.contract import BadInput, Emit, Note, Progress, Report, Row
from llm_core.data import bpe, tables, vocabulary
from llm_core.data.bpe import Tokenizer
from llm_core.data.encoding import Comparison, Job, LaidConversations, Plan, lay_dialogues, lay_documents
from llm_core.data.kit import Kit
from llm_core.data.mixture import Mixture, Sample, choose
from llm_core.data.reading import (
    Array,
    Slice,
    Survey,
    sampled_dialogues,
    sampled_documents,
    slices,
    survey_dialogues,
    survey_documents,
    surveyed,
)
from llm_core.data.shards import KINDS, SPLITS, describe, write_offsets
from llm_core.data.streams import Joining, Run, divided, join
from llm_core.settings.tokenize import TokenizeConfig
from llm_core.storage import products
from llm_core.storage.places import Place
from llm_core.storage.products import Blob

ALONE_BYTES = 30_000_000
"""Below this many bytes of text, starting workers takes longer than encoding."""
COMPARED_BYTES = 1_000_000
"""UTF-8 bytes of each source that GPT-2's tokenizer encodes too, where it is at hand."""
SHOWN_TOKENS = 20
TOLD_EVERY = 2_000_000


def run(config: TokenizeConfig, *, corpus: Path, out: Path, scratch: Path, emit: Emit) -> Report:
    """Write the shards, with the tokenizer beside them."""
    corpus, scratch, url = corpus.resolve(), scratch.resolve(), config.storage.url  # workers may be somewhere else
    products.begin(url)
    said = read_manifest(corpus, "corpus")["facts"].get("weights", {})
    away = url if config.cluster.kind == "dask" else None  # workers elsewhere see only the store
    reading = _Reading.of(corpus, away)
    alone = reading.weight < ALONE_BYTES and config.cluster.kind == "processes"
    many = crew(config.cluster.kind, config.cluster.address, 1 if alone else config.workers)
    place, partial = products.scratch(away, scratch, "ids"), scratch / "partial"  # nothing in them is gone on with
    facts: dict[str, Any] = {}
    with (
        _cleared(place, scratch),
        many as workers,
        products.new_product(out.resolve(), "shards", facts, partial=partial, url=url) as making,
    ):
        emit(Progress(0, None, "bytes", {"doing": "surveying the corpus"}))
        found = reading.survey(workers)
        weights = _weights(config, said, found)
        tokenizer = _tokenizer(config, reading, found, weights, workers, emit)
        facts |= {**describe(tokenizer), "tokenizer": config.tokenizer}
        tokenizer.save(making.folder / "tokenizer")
        plan = _plan(config, tokenizer, making.folder / "tokenizer", scratch, found, weights)
        writing = _Writing(making, place, plan, _kit(plan, place) if away else None, facts["dtype"], workers, emit)
        counts = _Counts(tokenizer)
        facts["splits"] = _documents(reading, writing, counts, int(found.size[found.source >= 0].sum()))
        if not facts["splits"]["train"]["tokens"]:
            raise BadInput("tokenize: the corpus holds no documents to train on")
        facts["dialogues"] = _dialogues(reading, writing, counts)
        facts["empty_documents"] = counts.empty
    return _report(facts, tokenizer, counts, workers.table("bytes"))


@contextmanager
def _cleared(place: Place, scratch: Path) -> Iterator[None]:
    """What was laid down is removed at the end, also after an error: a rerun encodes everything anew."""
    try:
        yield
    finally:
        products.cleared(place, scratch, "ids")


@dataclass(frozen=True, slots=True)
class _Reading:
    """The corpus in slices, for workers."""

    documents: list[Slice]
    dialogues: list[Slice]
    weight: int
    """Bytes of the documents' table, uncompressed."""

    @staticmethod
    def of(corpus: Path, away: str | None) -> _Reading:
        there = products.reachable(corpus, "corpus", away)
        documents, dialogues = tables.parts(there, "documents"), tables.parts(there, "dialogues")
        groups = (tables.metadata(file).row_group(n) for file in documents for n in range(_groups(file)))
        weight = sum(group.total_byte_size for group in groups)
        return _Reading(list(slices(*documents)), list(slices(*dialogues)), weight)

    def survey(self, workers: Crew) -> Survey:
        jobs = ((piece, SPLITS) for piece in self.documents)
        found = workers.map(survey_documents, jobs, units=lambda _: 0)
        return surveyed(chain(found, workers.map(survey_dialogues, self.dialogues, units=lambda _: 0)))

    def texts(self, weights: Mapping[str, float], sample: Sample, workers: Crew) -> Iterator[str]:
        """The sample's texts, those of documents first."""
        jobs = ((piece, weights, sample) for piece in self.documents)
        for texts in workers.map(sampled_documents, jobs, units=lambda _: 0):
            yield from texts
        for texts in workers.map(sampled_dialogues, ((p, sample) for p in self.dialogues), units=lambda _: 0):
            yield from texts


def _groups(file: Blob) -> int:
    return int(tables.metadata(file).num_row_groups)


@dataclass(frozen=True, slots=True)
class _Writing:
    """What writing documents and dialogues takes."""

    making: products.Making
    place: Place
    plan: Plan
    kit: Kit | None
    dtype: str
    workers: Crew
    emit: Emit

    def jobs(self, pieces: Iterable[Slice]) -> Iterator[Job]:
        return (Job(piece, self.plan, self.place, self.kit) for piece in pieces)

    def files(self, streams: Iterable[tuple[str, str, Sequence[Run]]]) -> None:
        """Let workers write the files of streams, each given by its name, suffix and runs."""
        jobs = (job for name, suffix, runs in streams for job in self._divided(name, suffix, runs))
        for name, entry in self.workers.map(join, jobs, units=lambda _: 0):
            self.making.add(name, entry)

    def _divided(self, name: str, suffix: str, runs: Sequence[Run]) -> Iterator[Joining]:
        return divided(name, suffix, runs, self.place, self.making.output)


def _kit(plan: Plan, place: Place) -> Kit:
    """What workers elsewhere need of the plan: the tokenizers."""
    paths = {"tokenizer": plan.tokenizer[0]} | ({"reference": plan.reference[0]} if plan.reference else {})
    return Kit.packed(paths, place.below("kit"))


class _Counts:
    """What is counted over all slices."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.uses = np.zeros(tokenizer.vocab_size, dtype=np.int64)
        self.empty = 0
        self.compared: dict[str, Comparison] = {}


def _weights(config: TokenizeConfig, said: Mapping[str, float], found: Survey) -> dict[str, float]:
    """The weight of each source with documents: the settings' before the corpus's."""
    if unknown := sorted(set(config.weights) - set(found.sources) - set(said)):
        known = ", ".join(sorted({*found.sources, *said}))
        raise BadInput(f"tokenize.weights: {unknown[0]!r} is no source of the corpus; those are {known}")
    return {source: float(config.weights.get(source, said.get(source, 1.0))) for source in sorted(found.sources)}


def _tokenizer(
    config: TokenizeConfig, reading: _Reading, found: Survey, weights: Mapping[str, float], workers: Crew, emit: Emit
) -> Tokenizer:
    if config.tokenizer == "gpt2":
        return bpe.gpt2(config.gpt2_files, config.gpt2_cache)
    if config.tokenizer_folder is not None:
        return Tokenizer.load(config.tokenizer_folder)
    by_source = np.array([*(weights[source] for source in found.sources), 1.0])  # the last: dialogues have source -1
    train = found.train
    sample = choose(found.place[train], found.size[train], by_source[found.source[train]], config.sample_bytes)
    pattern = bpe.DIGITS1 if config.digits == "single" else bpe.GPT2
    texts = _told(reading.texts(weights, sample, workers), sample.size, emit)
    tokenizer = bpe.train(texts, config.vocab_size, pattern)
    if tokenizer.vocab_size < config.vocab_size:
        emit(Note(f"the corpus has pairs for {tokenizer.vocab_size} tokens only, not {config.vocab_size}"))
    return tokenizer


def _told(texts: Iterable[str], total: int, emit: Emit) -> Iterator[str]:
    """The texts, while it is told how many of their bytes were taken."""
    done, told = 0, -TOLD_EVERY
    for text in texts:
        if done - told >= TOLD_EVERY:
            emit(Progress(done, total, "bytes", {"doing": "training the tokenizer"}))
            told = done
        yield text
        done += len(text)  # about: letters beyond ASCII have more


def _plan(
    config: TokenizeConfig,
    tokenizer: Tokenizer,
    folder: Path,
    scratch: Path,
    found: Survey,
    weights: Mapping[str, float],
) -> Plan:
    """What workers need; with GPT-2's tokenizer where it is at hand and another than the shards'."""
    here = (folder.resolve(), tokenizer.digest)
    gpt2 = None if config.tokenizer == "gpt2" else bpe.gpt2_at_hand(config.gpt2_files, config.gpt2_cache)
    if gpt2 is None:
        return Plan(here, weights)
    reference = (scratch / "gpt2").resolve()
    vocabulary.write_tiktoken(gpt2.vocabulary, reference)
    compared = {}
    for number, source in enumerate(found.sources):
        held_out = (found.source == number) & ~found.train
        chosen = held_out if held_out.any() else found.source == number
        sample = choose(found.place[chosen], found.size[chosen], np.ones(int(chosen.sum())), COMPARED_BYTES)
        compared[source] = ("validation" if held_out.any() else "train", sample.limit)
    return Plan(here, weights, (reference, gpt2.digest), compared)


def _documents(reading: _Reading, writing: _Writing, counts: _Counts, total: int) -> dict[str, dict[str, Any]]:
    weights = {"train": writing.plan.weights, "validation": {}}
    mixtures = {split: Mixture(writing.dtype, weights[split]) for split in SPLITS}
    done, tokens = 0, 0
    jobs = writing.jobs(reading.documents)
    for laid in writing.workers.map(lay_documents, jobs, units=lambda result: result.text_bytes):
        for part in laid.parts:
            mixtures[part.split].add(part)
            tokens += int(part.lengths.sum())
        counts.uses += laid.uses
        counts.empty += laid.empty
        for source, comparison in laid.compared.items():
            counts.compared.setdefault(source, Comparison()).add(comparison)
        done += laid.text_bytes
        writing.emit(Progress(done, total, "bytes", {"tokens": tokens, **writing.workers.figures()}))
    streams = {split: mixture.stream() for split, mixture in mixtures.items()}
    writing.files((split, "bin", stream.runs) for split, stream in streams.items())
    for split, stream in streams.items():
        write_offsets(writing.making.folder / f"{split}.offsets", stream.lengths)
    return {split: stream.facts for split, stream in streams.items()}


def _dialogues(reading: _Reading, writing: _Writing, counts: _Counts) -> dict[str, dict[str, Any]]:
    parts: dict[str, list[LaidConversations]] = {split: [] for split in SPLITS}
    for found, uses in writing.workers.map(lay_dialogues, writing.jobs(reading.dialogues), units=lambda _: 0):
        for part in found:
            parts[part.split].append(part)
        counts.uses += uses
        written = sum(len(part.lengths) for of_split in parts.values() for part in of_split)
        writing.emit(Progress(written, None, "dialogues"))
    streams = [(f"dialogues-{split}", "bin", [part.ids for part in parts[split]]) for split in SPLITS]
    streams += [(f"dialogues-{split}", "mask", [part.mask for part in parts[split]]) for split in SPLITS]
    writing.files(streams)
    facts = {}
    for split in SPLITS:
        lengths = np.concatenate([np.zeros(0, "u4"), *(part.lengths for part in parts[split])])
        kinds = np.concatenate([np.zeros(0, "u1"), *(part.kinds for part in parts[split])])
        write_offsets(writing.making.folder / f"dialogues-{split}.offsets", lengths)
        kinds.tofile(writing.making.folder / f"dialogues-{split}.kinds")
        by_kind = dict(zip(KINDS, np.bincount(kinds, minlength=len(KINDS)).tolist(), strict=True))
        facts[split] = {"dialogues": len(lengths), "tokens": int(lengths.sum()), "kinds": by_kind}
    return facts


def _report(facts: dict[str, Any], tokenizer: Tokenizer, counts: _Counts, workers: list[Row]) -> Report:
    splits, dialogues = facts["splits"], facts["dialogues"]
    table: list[Row] = [
        {"split": split, "documents": entry["documents"], "tokens": entry["tokens"], "bytes": entry["bytes"]}
        | {"dialogues": dialogues[split]["dialogues"], "dialogue_tokens": dialogues[split]["tokens"]}
        for split, entry in splits.items()
    ]
    dead = _dead(tokenizer, counts.uses)
    tokens, documents, size = (_sum(facts, key) for key in ("tokens", "documents", "bytes"))
    metrics = {
        "vocab_size": tokenizer.vocab_size,
        "train_tokens": splits["train"]["tokens"],
        "validation_tokens": splits["validation"]["tokens"],
        "train_dialogues": dialogues["train"]["dialogues"],
        "bytes_per_token": size / max(1, tokens - documents),
        "dead_tokens": len(dead),
        "empty_documents": facts["empty_documents"],
    }
    tables: dict[str, list[Row]] = {
        "splits": table,
        "mixture of the training stream": _mixture(facts),
        "bytes per token": _compression(facts, counts),
        "longest tokens": _longest(tokenizer, counts.uses),
        "dead tokens": [{"token": _shown(token), "id": tokenizer.ranks[token]} for token in dead[:SHOWN_TOKENS]],
    }
    tables |= {"workers": workers} if workers else {}
    return Report(metrics={name: float(value) for name, value in metrics.items()}, tables=tables)


def _sum(facts: dict[str, Any], key: str) -> int:
    return sum(entry[key] for entry in facts["splits"]["train"]["mixture"].values())


def _mixture(facts: dict[str, Any]) -> list[Row]:
    """For each source, what the corpus has and what stands in the training stream."""
    train = facts["splits"]["train"]
    return [
        {"source": source, "weight": entry["weight"], "documents": entry["documents"], "tokens": entry["tokens"]}
        | {"documents_in_stream": entry["stream_documents"], "tokens_in_stream": entry["stream_tokens"]}
        | {"share_of_stream": entry["stream_tokens"] / max(1, train["tokens"])}
        for source, entry in train["mixture"].items()
    ]


def _compression(facts: dict[str, Any], counts: _Counts) -> list[Row]:
    """UTF-8 bytes for each token by source, end tokens apart, beside GPT-2's on a part of the same documents."""
    rows: list[Row] = []
    by_split = [facts["splits"][split]["mixture"] for split in SPLITS]
    for source in sorted({name for mixture in by_split for name in mixture}):
        entries = [mixture[source] for mixture in by_split if source in mixture]
        tokens = sum(entry["tokens"] - entry["documents"] for entry in entries)
        row: dict[str, str | float | int | None] = {"source": source}
        row["bytes_per_token"] = sum(entry["bytes"] for entry in entries) / max(1, tokens)
        found = counts.compared.get(source)
        if facts["tokenizer"] == "gpt2":
            row["gpt2"] = "this is GPT-2's"
        elif found is None:
            row["gpt2"] = "GPT-2's ranks are not at hand: tokenize.gpt2_files names their folder"
        else:
            row["gpt2_bytes_per_token"] = found.text_bytes / max(1, found.reference_tokens)
            row["tokens_against_gpt2"] = found.tokens / max(1, found.reference_tokens)
            row["compared_bytes"] = found.text_bytes
        rows.append(row)
    return rows


def _longest(tokenizer: Tokenizer, uses: Array) -> list[Row]:
    longest = sorted(tokenizer.ranks, key=lambda token: (-len(token), token))[:SHOWN_TOKENS]
    return [
        {"token": _shown(token), "bytes": len(token), "times_used": int(uses[tokenizer.ranks[token]])}
        for token in longest
    ]


def _dead(tokenizer: Tokenizer, uses: Array) -> list[bytes]:
    """Tokens of two bytes or more that occur nowhere in the training split, the longest first."""
    dead = [token for token, rank in tokenizer.ranks.items() if len(token) > 1 and not uses[rank]]
    return sorted(dead, key=lambda token: (-len(token), token))


def _shown(token: bytes) -> str:
    return token.decode(errors="backslashreplace")

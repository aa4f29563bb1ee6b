"""tokenize: train the tokenizer on the training split, and write documents and dialogues as token shards.

Workers read and encode slices of the corpus; here the parts are put together in the order of the corpus, source by
source, so that the shards are the same bytes for any number of workers. Text is never held whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from llm_core.artifacts import new_product, read_manifest
from llm_core.cluster import Crew, crew
from llm_core.contract import BadInput, Emit, Note, Progress, Report, Row
from llm_core.data import bpe, vocabulary
from llm_core.data.bpe import Tokenizer
from llm_core.data.encoding import Comparison, Plan, encode_dialogues, encode_documents
from llm_core.data.mixture import MixtureWriter, Sample, choose
from llm_core.data.reading import Array, Survey, slices, survey, training_dialogues, training_documents
from llm_core.data.shards import KINDS, SPLITS, ShardWriter, describe
from llm_core.settings.tokenize import TokenizeConfig

ALONE_BYTES = 30_000_000
"""Below this many bytes of text, starting workers takes longer than encoding."""
COMPARED_BYTES = 1_000_000
"""UTF-8 bytes of each source that GPT-2's tokenizer encodes too, where it is at hand."""
SHOWN_TOKENS = 20
TOLD_EVERY = 2_000_000


def run(config: TokenizeConfig, *, corpus: Path, out: Path, scratch: Path, emit: Emit) -> Report:
    """Write the shards, with the tokenizer beside them."""
    corpus = corpus.resolve()  # workers may have another current directory
    said = read_manifest(corpus, "corpus")["facts"].get("weights", {})
    emit(Progress(0, None, "bytes", {"doing": "surveying the corpus"}))
    found = survey(corpus, SPLITS)
    total = int(found.size[found.source >= 0].sum())
    weights = _weights(config, said, found)
    tokenizer = _tokenizer(config, corpus, found, weights, emit)
    facts: dict[str, Any] = {**describe(tokenizer), "tokenizer": config.tokenizer}
    alone = total < ALONE_BYTES and config.cluster.kind == "processes"
    many = crew(config.cluster.kind, config.cluster.address, 1 if alone else config.workers)
    with new_product(out.resolve(), "shards", facts) as product, many as workers:
        tokenizer.save(product / "tokenizer")
        plan = _plan(config, tokenizer, product / "tokenizer", scratch, found, weights)
        counts = _Counts(tokenizer)
        facts["splits"] = _documents(product, corpus, plan, counts, facts["dtype"], workers, total, emit)
        if not facts["splits"]["train"]["tokens"]:
            raise BadInput("tokenize: the corpus holds no documents to train on")
        facts["dialogues"] = _dialogues(product, corpus, plan, counts, facts["dtype"], workers, emit)
        facts["empty_documents"] = counts.empty
    return _report(facts, tokenizer, counts, workers.table("bytes"))


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
    config: TokenizeConfig, corpus: Path, found: Survey, weights: Mapping[str, float], emit: Emit
) -> Tokenizer:
    if config.tokenizer == "gpt2":
        return bpe.gpt2(config.gpt2_files, config.gpt2_cache)
    if config.tokenizer_folder is not None:
        return Tokenizer.load(config.tokenizer_folder)
    by_source = np.array([*(weights[source] for source in found.sources), 1.0])  # the last: dialogues have source -1
    train = found.train
    sample = choose(found.place[train], found.size[train], by_source[found.source[train]], config.sample_bytes)
    pattern = bpe.DIGITS1 if config.digits == "single" else bpe.GPT2
    texts = _told(_training_texts(corpus, weights, sample), sample.size, emit)
    tokenizer = bpe.train(texts, config.vocab_size, pattern)
    if tokenizer.vocab_size < config.vocab_size:
        emit(Note(f"the corpus has pairs for {tokenizer.vocab_size} tokens only, not {config.vocab_size}"))
    return tokenizer


def _training_texts(corpus: Path, weights: Mapping[str, float], sample: Sample) -> Iterator[str]:
    for key, source, text in training_documents(corpus):
        yield from sample.take(key, weights[source], [text])
    for key, texts in training_dialogues(corpus):
        yield from sample.take(key, 1.0, texts)


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


def _documents(
    product: Path, corpus: Path, plan: Plan, counts: _Counts, dtype: str, workers: Crew, total: int, emit: Emit
) -> dict[str, dict[str, Any]]:
    weights = {"train": plan.weights, "validation": {}}
    writers = {split: MixtureWriter(product, split, dtype, weights[split]) for split in SPLITS}
    done, tokens = 0, 0
    jobs = ((piece, plan) for piece in slices(corpus / "documents.parquet"))
    for encoded in workers.map(encode_documents, jobs, units=lambda result: result.text_bytes):
        for part in encoded.parts:
            writers[part.split].add(part)
            tokens += len(part.ids)
        counts.uses += encoded.uses
        counts.empty += encoded.empty
        for source, comparison in encoded.compared.items():
            counts.compared.setdefault(source, Comparison()).add(comparison)
        done += encoded.text_bytes
        emit(Progress(done, total, "bytes", {"tokens": tokens, **workers.figures()}))
    return {split: writer.close() for split, writer in writers.items()}


def _dialogues(
    product: Path, corpus: Path, plan: Plan, counts: _Counts, dtype: str, workers: Crew, emit: Emit
) -> dict[str, dict[str, Any]]:
    writers = {split: ShardWriter(product, f"dialogues-{split}", dtype, extra=("mask", "kinds")) for split in SPLITS}
    kinds = {split: np.zeros(len(KINDS), dtype=np.int64) for split in SPLITS}
    jobs = ((piece, plan) for piece in slices(corpus / "dialogues.parquet"))
    for found, uses in workers.map(encode_dialogues, jobs, units=lambda _: 0):
        for part in found:
            writers[part.split].extend(part.ids, part.lengths, mask=part.mask, kinds=part.kinds)
            kinds[part.split] += np.bincount(part.kinds, minlength=len(KINDS))
        counts.uses += uses
        written = sum(writer.sequences for writer in writers.values())
        emit(Progress(written, None, "dialogues", {"tokens": sum(writer.tokens for writer in writers.values())}))
    facts = {}
    for split, writer in writers.items():
        writer.close()
        by_kind = dict(zip(KINDS, kinds[split].tolist(), strict=True))
        facts[split] = {"dialogues": writer.sequences, "tokens": writer.tokens, "kinds": by_kind}
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

"""tokenize: train the tokenizer on the training split, and write documents and dialogues as token shards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash

from llm_core.artifacts import new_product, read_manifest
from llm_core.contract import BadInput, Emit, Note, Progress, Report
from llm_core.data import bpe, dialogue
from llm_core.data.bpe import Tokenizer
from llm_core.data.shards import KINDS, SPLITS, Array, ShardWriter, dtype_for
from llm_core.parallel import map_ordered
from llm_core.settings.tokenize import TokenizeConfig

ROWS = 1_000
ALONE_BYTES = 30_000_000
"""Below this many bytes of text, starting workers takes longer than encoding."""


def run(config: TokenizeConfig, *, corpus: Path, out: Path, scratch: Path, emit: Emit) -> Report:  # noqa: ARG001
    """Write the shards, with the tokenizer beside them."""
    total = int(read_manifest(corpus, "corpus")["facts"]["text_bytes"])
    workers = 1 if total < ALONE_BYTES else config.workers
    tokenizer = _tokenizer(config, corpus, total, emit)
    facts: dict[str, Any] = {"dtype": dtype_for(tokenizer.vocab_size), "vocab_size": tokenizer.vocab_size}
    facts |= {"tokenizer": config.tokenizer, "end_id": tokenizer.end_id, "kinds": list(KINDS)}
    with new_product(out, "shards", facts) as product:
        tokenizer.save(product / "tokenizer")
        facts["splits"] = _documents(product, corpus, facts["dtype"], workers, total, emit)
        facts["dialogues"] = _dialogues(product, corpus, facts["dtype"], workers, emit)
    if not facts["splits"]["train"]["tokens"]:
        raise BadInput("tokenize: the corpus holds no documents to train on")
    return _report(facts, tokenizer)


def _tokenizer(config: TokenizeConfig, corpus: Path, total: int, emit: Emit) -> Tokenizer:
    if config.tokenizer == "gpt2":
        return bpe.gpt2(config.gpt2_files)
    emit(Progress(0, total, "bytes", {"doing": "training the tokenizer"}))
    keep = _sampler(config.sample_bytes, total)
    tokenizer = bpe.train(_training_texts(corpus, keep), config.vocab_size, bpe.DIGITS1)
    if tokenizer.vocab_size < config.vocab_size:
        emit(Note(f"the corpus has pairs for {tokenizer.vocab_size} tokens only, not {config.vocab_size}"))
    return tokenizer


def _sampler(sample_bytes: int, total: int) -> Callable[[str], bool]:
    """Which ids the tokenizer is trained on: all, or a share chosen by their hash."""
    share = min(1.0, sample_bytes / max(total, 1))
    return lambda key: share >= 1.0 or xxhash.xxh3_64_intdigest(f"sample {key}".encode()) < share * 2**64


def _training_texts(corpus: Path, keep: Callable[[str], bool]) -> Iterator[str]:
    for row in _rows(corpus / "documents.parquet", ["id", "split", "text"]):
        if row["split"] == "train" and keep(row["id"]):
            yield row["text"]
    for row in _rows(corpus / "dialogues.parquet", ["id", "split", "messages"]):
        if row["split"] == "train" and keep(row["id"]):
            yield from (message["content"] for message in row["messages"])


def _rows(path: Path, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(ROWS, columns=list(columns)):
            yield from batch.to_pylist()


def _batches(path: Path, split: str, columns: Sequence[str], tokenizer: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(ROWS, columns=["split", *columns]):
            chosen = batch.filter(pc.equal(batch.column("split"), split))
            if chosen.num_rows:
                yield tokenizer, chosen.select(list(columns)).to_pydict()


@lru_cache(2)
def _load(folder: Path) -> Tokenizer:
    return Tokenizer.load(folder)


def _encode_documents(batch: tuple[Path, dict[str, Any]]) -> tuple[list[str], list[Array], int]:
    """(sources, ids of each document with the end token, UTF-8 bytes)."""
    folder, columns = batch
    tokenizer = _load(folder)
    dtype = dtype_for(tokenizer.vocab_size)
    ids = [np.asarray([*tokenizer.encode(text), tokenizer.end_id], dtype=dtype) for text in columns["text"]]
    return columns["source"], ids, sum(len(text.encode()) for text in columns["text"])


def _encode_dialogues(batch: tuple[Path, dict[str, Any]]) -> list[tuple[str, list[int], list[int]]]:
    """(kind, ids, mask) of each conversation."""
    folder, columns = batch
    tokenizer = _load(folder)
    pairs = zip(columns["kind"], columns["messages"], strict=True)
    return [(kind, *dialogue.encode(messages, tokenizer)) for kind, messages in pairs]


def _documents(
    product: Path, corpus: Path, dtype: str, workers: int, total: int, emit: Emit
) -> dict[str, dict[str, Any]]:
    facts: dict[str, dict[str, Any]] = {}
    done = 0
    for split in SPLITS:
        writer = ShardWriter(product, split, dtype)
        sources: dict[str, list[int]] = {}
        text_bytes = 0
        batches = _batches(corpus / "documents.parquet", split, ("source", "text"), (product / "tokenizer").resolve())
        for names, documents, size in map_ordered(_encode_documents, batches, workers=workers):
            for name, ids in zip(names, documents, strict=True):
                span = sources.setdefault(name, [writer.sequences, writer.sequences])
                writer.append(ids)
                span[1] = writer.sequences
            text_bytes += size
            done += size
            emit(Progress(done, total, "bytes", {"tokens": writer.tokens}))
        writer.close()
        facts[split] = {"documents": writer.sequences, "tokens": writer.tokens, "bytes": text_bytes, "sources": sources}
    return facts


def _dialogues(product: Path, corpus: Path, dtype: str, workers: int, emit: Emit) -> dict[str, dict[str, Any]]:
    facts: dict[str, dict[str, Any]] = {}
    for split in SPLITS:
        writer = ShardWriter(product, f"dialogues-{split}", dtype, extra=("mask", "kinds"))
        kinds = dict.fromkeys(KINDS, 0)
        batches = _batches(corpus / "dialogues.parquet", split, ("kind", "messages"), (product / "tokenizer").resolve())
        for encoded in map_ordered(_encode_dialogues, batches, workers=workers):
            for kind, ids, mask in encoded:
                writer.append(ids, mask=mask, kinds=[KINDS.index(kind)])
                kinds[kind] += 1
            emit(Progress(writer.sequences, None, "dialogues", {"tokens": writer.tokens}))
        writer.close()
        facts[split] = {"dialogues": writer.sequences, "tokens": writer.tokens, "kinds": kinds}
    return facts


def _report(facts: dict[str, Any], tokenizer: Tokenizer) -> Report:
    table = [
        {"split": split, "documents": entry["documents"], "tokens": entry["tokens"], "bytes": entry["bytes"]}
        | {"dialogues": facts["dialogues"][split]["dialogues"], "dialogue_tokens": facts["dialogues"][split]["tokens"]}
        for split, entry in facts["splits"].items()
    ]
    train = facts["splits"]["train"]
    longest = sorted(tokenizer.ranks, key=lambda token: (-len(token), token))[:20]
    return Report(
        metrics={
            "vocab_size": float(tokenizer.vocab_size),
            "train_tokens": float(train["tokens"]),
            "validation_tokens": float(facts["splits"]["validation"]["tokens"]),
            "train_dialogues": float(facts["dialogues"]["train"]["dialogues"]),
            "bytes_per_token": train["bytes"] / max(1, train["tokens"] - train["documents"]),
        },
        tables={"splits": table, "longest tokens": [{"token": token.decode(errors="replace")} for token in longest]},
    )

"""The shapes of documents, dialogues and preferences on disk, and which split a group belongs to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import xxhash

ROLES = ("system", "user", "assistant")
MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))

RAW_DOCUMENTS = pa.schema(
    [(name, pa.string()) for name in ("url", "title", "text", "content_type", "licence", "group")]
)
RAW_DIALOGUES = pa.schema(
    [*((name, pa.string()) for name in ("url", "group", "kind")), ("messages", MESSAGES), ("check", pa.string())]
)
RAW_PREFERENCES = pa.schema(
    [(name, pa.string()) for name in ("url", "group")]
    + [("prompt", MESSAGES), ("chosen", pa.string()), ("rejected", pa.string())]
)

KINDS = ("documents", "dialogues", "preferences")
_TRACE = ("id", "source", "url", "digest")
"""id: hash of what it says, case and white space aside; digest: xxh3-128 of the raw page's bytes or the raw row."""

DOCUMENTS = pa.schema(
    [(name, pa.string()) for name in (*_TRACE, "title", "text", "language", "licence", "date")]
    + [(name, pa.string()) for name in ("group", "split", "cluster")]
)
"""cluster: set where copies of the document were dropped; their rows in dropped.parquet have the same."""
DIALOGUES = pa.schema(
    [(name, pa.string()) for name in (*_TRACE, "group", "split", "kind")]
    + [("messages", MESSAGES), ("check", pa.string())]
)
PREFERENCES = pa.schema(
    [(name, pa.string()) for name in (*_TRACE, "group", "split")]
    + [("prompt", MESSAGES), ("chosen", pa.string()), ("rejected", pa.string())]
)
DROPPED = pa.schema(
    [(name, pa.string()) for name in ("source", "what", "url", "digest", "reason", "excerpt", "cluster")]
)
CONTAMINATED = pa.schema([(name, pa.string()) for name in ("source", "what", "url", "digest", "set", "item", "words")])
"""What a dropped row shares with an evaluation set: the set's file, the item's number, the words."""


@dataclass(frozen=True, slots=True)
class Document:
    """A page's own text, with what its head says about it; None where it says nothing."""

    text: str
    title: str | None = None
    url: str | None = None
    date: str | None = None
    language: str | None = None
    licence: str | None = None


def identity(text: str) -> str:
    """A stable id: xxh3-128, in hex, of the text in lower case with its white space squeezed."""
    return xxhash.xxh3_128_hexdigest(" ".join(text.lower().split()).encode("utf-8", "surrogatepass"))


def texts_in(value: Any) -> Iterator[str]:
    """Every text in a row or a JSON value, however deep."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from texts_in(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from texts_in(inner)


def split_of(group: str, validation_share: float, feedback_share: float = 0.0) -> str:
    """ "validation", "feedback" or "train", from a hash of the group alone: more data never moves a group."""
    position = xxhash.xxh3_64_intdigest(group.encode("utf-8", "surrogatepass")) / 2**64
    if position < validation_share:
        return "validation"
    return "feedback" if position < validation_share + feedback_share else "train"

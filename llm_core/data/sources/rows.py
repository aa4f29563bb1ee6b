"""Rows of any dataset, brought into the shapes of raw documents, dialogues and preferences."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from llm_core.contract import BadInput
from llm_core.data.document import RAW_DIALOGUES, RAW_DOCUMENTS, RAW_PREFERENCES, ROLES
from llm_core.parallel import batched

SCHEMAS = {"documents": RAW_DOCUMENTS, "dialogues": RAW_DIALOGUES, "preferences": RAW_PREFERENCES}
BATCH_ROWS = 1_000
Row = Mapping[str, Any]
_ROLE_NAMES = {"human": "user", "gpt": "assistant", "bot": "assistant", "prompter": "user"}


@dataclass(frozen=True, slots=True)
class Columns:
    """Which columns hold what; `title` and `url` may be None."""

    text: str = "text"
    title: str | None = None
    url: str | None = None
    messages: str = "messages"
    instruction: str = "instruction"
    input: str = "input"
    output: str = "output"
    prompt: str = "prompt"
    chosen: str = "chosen"
    rejected: str = "rejected"


def shape(rows: Iterable[Row], holds: str, columns: Columns) -> Iterator[dict[str, Any]]:
    """Rows of a dataset as raw rows. `holds` is text, dialogues or preferences.

    Raises `BadInput` naming the column that a row lacks.
    """
    shapers = {"text": _document, "dialogues": _dialogue, "preferences": _preference}
    for row in rows:
        yield shapers[holds](row, columns)


def _document(row: Row, columns: Columns) -> dict[str, Any]:
    extra = {
        name: _text(row.get(column)) for name, column in (("title", columns.title), ("url", columns.url)) if column
    }
    return {"text": _text(_need(row, columns.text)), "content_type": "text/plain", **extra}


def _dialogue(row: Row, columns: Columns) -> dict[str, Any]:
    url = _text(row.get(columns.url)) if columns.url else None
    return {"url": url, "kind": "dialogue", "messages": _messages(row, columns), "check": None}


def _messages(row: Row, columns: Columns) -> list[dict[str, str]]:
    if row.get(columns.messages) is not None:
        return conversation(row[columns.messages])
    answer = _text(_need(row, columns.output))
    return [{"role": "user", "content": _request(row, columns)}, {"role": "assistant", "content": answer}]


def _request(row: Row, columns: Columns) -> str:
    """Instruction and, where there is one, the input it speaks of."""
    more = _text(row.get(columns.input)).strip()
    instruction = _text(_need(row, columns.instruction))
    return f"{instruction}\n\n{more}" if more else instruction


def _preference(row: Row, columns: Columns) -> dict[str, Any]:
    chosen, rejected = _need(row, columns.chosen), _need(row, columns.rejected)
    prompt = row.get(columns.prompt)
    if prompt is None and not isinstance(chosen, str):
        messages = conversation(chosen)[:-1]
    elif prompt is None:
        messages = [{"role": "user", "content": _request(row, columns)}]
    elif isinstance(prompt, str):
        messages = [{"role": "user", "content": prompt}]
    else:
        messages = conversation(prompt)
    return {"prompt": messages, "chosen": _answer(chosen), "rejected": _answer(rejected)}


def _answer(value: Any) -> str:
    return value if isinstance(value, str) else conversation(value)[-1]["content"]


def conversation(value: Any) -> list[dict[str, str]]:
    """Messages as {role, content}, from that form or from {from, value}. Raises `BadInput` for an unknown role."""
    messages = []
    for message in value:
        role = str(message.get("role") or message.get("from"))
        role = _ROLE_NAMES.get(role, role)
        if role not in ROLES:
            raise BadInput(f"messages: unknown role {role!r}; known are {', '.join(ROLES)}")
        messages.append({"role": role, "content": _text(message.get("content", message.get("value")))})
    if not messages:
        raise BadInput("messages: a conversation is empty")
    return messages


def _need(row: Row, column: str) -> Any:
    if column not in row:
        raise BadInput(f"columns: a row has no column {column!r}; it has {', '.join(map(str, row))}")
    return row[column]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else str(value)


def write_rows(
    folder: Path,
    what: str,
    rows: Iterable[Row],
    *,
    limit: int | None = None,
    licence: str | None = None,
    tell: Callable[[int], None] = lambda _: None,
) -> int:
    """Stream rows into `folder`/`what`.parquet (documents, dialogues or preferences); returns how many.

    `tell` is called with the count so far after each batch.
    """
    schema, count = SCHEMAS[what], 0
    with pq.ParquetWriter(folder / f"{what}.parquet", schema, compression="zstd") as writer:
        for batch in batched(islice(rows, limit), BATCH_ROWS):
            full = [{**row, "licence": licence} for row in batch] if "licence" in schema.names else batch
            writer.write_table(pa.Table.from_pylist([dict(row) for row in full], schema=schema))
            count += len(batch)
            tell(count)
    return count

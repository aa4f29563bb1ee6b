"""Rows of any dataset, brought into the shapes of raw documents, dialogues and preferences."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from llm_core.contract import BadInput
from llm_core.data.document import RAW_DIALOGUES, RAW_DOCUMENTS, RAW_PREFERENCES, ROLES

SCHEMAS = {"documents": RAW_DOCUMENTS, "dialogues": RAW_DIALOGUES, "preferences": RAW_PREFERENCES}
BATCH_ROWS = 1_000
BATCH_CHARACTERS = 32_000_000
Row = Mapping[str, Any]
Message = dict[str, str]
_ROLE_NAMES = {"human": "user", "gpt": "assistant", "bot": "assistant", "prompter": "user"}
_TURN = re.compile(r"(?:\A|\n\n)(Human|Assistant):")


@dataclass(frozen=True, slots=True)
class Columns:
    """Which columns hold what; those that may be None need not exist."""

    text: str = "text"
    title: str | None = None
    url: str | None = None
    group: str | None = None
    licence: str | None = None
    messages: str = "messages"
    instruction: str = "instruction"
    input: str = "input"
    output: str = "output"
    prompt: str = "prompt"
    chosen: str = "chosen"
    rejected: str = "rejected"


class Unusable(ValueError):
    """A well-formed row that cannot become what is wanted; the message is the reason under which it is counted."""


def shape(
    rows: Iterable[Row],
    holds: str,
    columns: Columns,
    *,
    place: Callable[[], str] = lambda: "columns",
    skipped: Counter[str] | None = None,
) -> Iterator[dict[str, Any]]:
    """Rows of a dataset as raw rows. `holds` is text, dialogues or preferences.

    A row that cannot be used is left out and counted in `skipped` by its reason. Raises `BadInput` for a row that is
    malformed (a column is missing, a role is unknown); `place()` names the row that was read last.
    """
    shaper = {"text": _document, "dialogues": _dialogue, "preferences": _preference}[holds]
    for row in rows:
        try:
            shaped = shaper(row, columns)
        except Unusable as reason:
            if skipped is not None:
                skipped[str(reason)] += 1
            continue
        except BadInput as error:
            raise BadInput(f"{place()}: {error}") from None
        yield shaped


def _document(row: Row, columns: Columns) -> dict[str, Any]:
    names = (("title", columns.title), ("url", columns.url), ("group", columns.group), ("licence", columns.licence))
    extra = {name: _text(row.get(column)) or None for name, column in names if column}
    return {"text": _text(_need(row, columns.text)), "content_type": "text/plain", **extra}


def _dialogue(row: Row, columns: Columns) -> dict[str, Any]:
    return {
        "url": _optional(row, columns.url),
        "group": _optional(row, columns.group),
        "kind": "dialogue",
        "messages": _messages(row, columns),
        "check": None,
    }


def _optional(row: Row, column: str | None) -> str | None:
    return _text(row.get(column)) or None if column else None


def _messages(row: Row, columns: Columns) -> list[Message]:
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
    group = _optional(row, columns.group)
    prompt, answers = row.get(columns.prompt), [_need(row, columns.chosen), _need(row, columns.rejected)]
    talks = [_talk(answer) for answer in answers]
    if talks[0] is None or talks[1] is None:
        if prompt is None:
            messages = [{"role": "user", "content": _request(row, columns)}]
        else:
            messages = _talk(prompt) or [{"role": "user", "content": _text(prompt)}]
        return {"group": group, "prompt": messages, "chosen": _text(answers[0]), "rejected": _text(answers[1])}
    if any(talk[-1]["role"] != "assistant" for talk in talks if talk):
        raise Unusable("no_answer")
    if talks[0][:-1] != talks[1][:-1]:
        raise Unusable("prompts_differ")
    messages = talks[0][:-1] or _talk(prompt) or [{"role": "user", "content": _text(prompt)}]
    return {
        "group": group,
        "prompt": messages,
        "chosen": talks[0][-1]["content"],
        "rejected": talks[1][-1]["content"],
    }


def _talk(value: Any) -> list[Message] | None:
    """Messages, if the value is a conversation or a transcript; None for plain text or nothing."""
    return None if value is None or (isinstance(value, str) and not _TURN.match(value)) else conversation(value)


def conversation(value: Any) -> list[Message]:
    """Messages as {role, content}, from that form, from {from, value} or from a transcript of Human: and Assistant:.

    Raises `BadInput` for an unknown role or another form, `Unusable` for an empty conversation.
    """
    if isinstance(value, str):
        return _transcript(value)
    if not isinstance(value, list | tuple) or not all(isinstance(message, Mapping) for message in value):
        raise BadInput(f"messages: a list of {{role, content}} is needed, not {str(value)[:60]!r}")
    messages = []
    for message in value:
        role = str(message.get("role") or message.get("from"))
        role = _ROLE_NAMES.get(role, role)
        if role not in ROLES:
            raise BadInput(f"messages: unknown role {role!r}; known are {', '.join(ROLES)}")
        messages.append({"role": role, "content": _text(message.get("content", message.get("value")))})
    if not messages:
        raise Unusable("empty_conversation")
    return messages


def _transcript(text: str) -> list[Message]:
    """The turns of "\\n\\nHuman: ...\\n\\nAssistant: ...", the form of Anthropic's hh-rlhf."""
    before, *turns = _TURN.split(text)
    if before.strip() or not turns:
        raise BadInput(
            f"messages: neither a list nor a transcript that begins with Human: or Assistant:: {text[:60]!r}"
        )
    pairs = zip(turns[::2], turns[1::2], strict=True)
    return [{"role": "user" if who == "Human" else "assistant", "content": said.strip()} for who, said in pairs]


def _need(row: Row, column: str) -> Any:
    if column not in row:
        raise BadInput(f"a row has no column {column!r}; it has {', '.join(map(str, row)) or 'none'}")
    return row[column]


def _text(value: Any) -> str:
    """A value as text that UTF-8 can hold: lone surrogates, which JSON can spell, become U+FFFD."""
    text = value if isinstance(value, str) else "" if value is None else str(value)
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Lists of 1,000 rows, fewer where the rows are long: what is in memory at once stays bounded."""
    batch: list[Row] = []
    characters = 0
    for row in rows:
        batch.append(row)
        characters += len(row.get("text") or "")
        if len(batch) >= BATCH_ROWS or characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def table(what: str, rows: Iterable[Row], licence: str | None) -> pa.Table:
    """Rows as an Arrow table; `licence` holds where a document names none of its own."""
    schema = SCHEMAS[what]
    if "licence" in schema.names:
        rows = [{**row, "licence": row.get("licence") or licence} for row in rows]
    return pa.Table.from_pylist([dict(row) for row in rows], schema=schema)


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
    count = 0
    with pq.ParquetWriter(folder / f"{what}.parquet", SCHEMAS[what], compression="zstd") as writer:
        for batch in batches(islice(rows, limit)):
            writer.write_table(table(what, batch, licence))
            count += len(batch)
            tell(count)
    return count

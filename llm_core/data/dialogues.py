"""The checks that dialogues and preferences pass. Document filters would drop everything short."""

from __future__ import annotations

import json
from typing import Any

from llm_core.data.characters import repair
from llm_core.data.document import identity, split_of
from llm_core.data.sources.problems import is_right

Message = dict[str, str]


def clean_messages(messages: list[Message] | None) -> list[Message]:
    """The messages with mended characters; a row may hold none, or some without a role or content."""
    return [
        {"role": message["role"] or "", "content": repair(message["content"] or "")}
        for message in messages or []
        if message
    ]


def fault_of_messages(messages: list[Message]) -> str | None:
    """Why a conversation cannot be used: it must alternate between user and assistant, and nothing may be empty."""
    turns = messages[1:] if messages and messages[0]["role"] == "system" else messages
    if not all(message["content"] for message in messages):
        return "empty_message"
    expected = ("user", "assistant")
    if not turns or any(turn["role"] != expected[place % 2] for place, turn in enumerate(turns)):
        return "roles_do_not_alternate"
    return None


def dialogue(row: dict[str, Any], source: str, shares: tuple[float, float]) -> tuple[dict[str, Any], str | None]:
    """(the row of dialogues.parquet, why it is dropped or None). `shares`: validation, feedback."""
    messages = clean_messages(row["messages"])
    fault = fault_of_messages(messages)
    if fault is None and messages[-1]["role"] != "assistant":
        fault = "no_answer"
    if fault is None and row["check"] is not None and not _checks(messages[-1]["content"], row["check"]):
        fault = "wrong_answer"
    key = identity(json.dumps([[m["role"], m["content"]] for m in messages], ensure_ascii=False))
    group = row["group"] or key
    validation, feedback = shares
    return {
        "id": key,
        "source": source,
        "url": row["url"],
        "group": group,
        "split": split_of(group, validation, feedback if row["kind"] == "problem" else 0.0),
        "kind": row["kind"],
        "messages": messages,
        "check": row["check"],
    }, fault


def _checks(answer: str, expression: str) -> bool:
    try:
        return is_right(answer, expression)
    except ValueError:
        return False


def preference(row: dict[str, Any], source: str, shares: tuple[float, float]) -> tuple[dict[str, Any], str | None]:
    """(the row of preferences.parquet, why it is dropped or None). `shares`: validation, feedback."""
    prompt, chosen, rejected = clean_messages(row["prompt"]), repair(row["chosen"] or ""), repair(row["rejected"] or "")
    fault = fault_of_messages(prompt)
    if fault is None and prompt[-1]["role"] != "user":
        fault = "no_question"
    if fault is None and not (chosen and rejected):
        fault = "empty_answer"
    if fault is None and chosen == rejected:
        fault = "same_answers"
    asked = identity(json.dumps([[m["role"], m["content"]] for m in prompt], ensure_ascii=False))
    key = identity(json.dumps([asked, chosen, rejected], ensure_ascii=False))
    group = row["group"] or asked
    cleaned = {"id": key, "source": source, "url": row.get("url"), "group": group, "split": split_of(group, shares[0])}
    return {**cleaned, "prompt": prompt, "chosen": chosen, "rejected": rejected}, fault

"""Who prefers which answer: people, from the file of votes, and a simulated rater, from the checked answer.

A line of the votes file is one person's vote as a JSON object:

    id          text: the exchange that was judged; a later line of the same id and rater replaces the earlier one
    prompt      list of {"role": "system" | "user" | "assistant", "content": text}, the last of them by the user
    answer_a    text                    answer_b    text
    preference  "a" | "b" | "tie" | "both_bad"
    rater       text: who voted, under a name that gives nobody away

and, where known:

    model_a, model_b        text: names of the models that answered
    digest_a, digest_b      text: digests of these models' directories
    sampling_a, sampling_b  objects: temperature, top_k, top_p, seed and the like of each answer
    why         text: the rater's words
    edited      text: a better answer that the rater wrote; it counts as preferred to the one it was made of
    edited_of   "a" | "b" | null: which one that is (null: the preferred one, else a)
    seconds     number: from both answers standing there to the vote
    ts          text: when

Answer a stood on the left.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from llm_core.contract import BadInput

Preference = Literal["a", "b", "tie", "both_bad"]
CLEAR = ("a", "b")


class Message(BaseModel):
    """One turn of a dialogue."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    role: Literal["system", "user", "assistant"]
    content: str


class PersonVote(BaseModel):
    """One line of the votes file; see the module's text."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    id: str = Field(min_length=1)
    prompt: tuple[Message, ...] = Field(min_length=1)
    answer_a: str
    answer_b: str
    preference: Preference
    rater: str = Field(min_length=1)
    model_a: str = ""
    model_b: str = ""
    digest_a: str = ""
    digest_b: str = ""
    sampling_a: dict[str, str | int | float | bool | None] = Field(default_factory=dict)
    sampling_b: dict[str, str | int | float | bool | None] = Field(default_factory=dict)
    why: str = ""
    edited: str = ""
    edited_of: Literal["a", "b"] | None = None
    seconds: float | None = Field(default=None, ge=0)
    ts: str = ""

    @field_validator("prompt")
    @classmethod
    def _ends_with_the_user(cls, prompt: tuple[Message, ...]) -> tuple[Message, ...]:
        if prompt[-1].role != "user":
            raise ValueError("the last message of a prompt must be the user's")
        return prompt


def read_people(path: Path) -> list[PersonVote]:
    """The latest vote of each rater on each exchange, sorted by (id, rater). Raises `BadInput` naming file and line."""
    if not path.is_file():
        raise BadInput(f"{path}: no such file; an empty one means that nobody has voted yet")
    latest: dict[tuple[str, str], PersonVote] = {}
    with open(path, encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                vote = _parse(line, f"{path}: line {number}")
                latest[vote.id, vote.rater] = vote
    return [latest[key] for key in sorted(latest)]


def _parse(line: str, where: str) -> PersonVote:
    try:
        return PersonVote.model_validate_json(line)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        name = ".".join(str(part) for part in first["loc"])
        raise BadInput(f"{where}: {name + ': ' if name else ''}{first['msg']}") from None


def simulated_preference(right_a: bool, right_b: bool, *, noise: float, key: str) -> Preference:
    """Right beats wrong; two right answers tie, two wrong ones are both bad.

    A clear vote is flipped with probability `noise`, drawn from `key` alone, so that order and number of votes
    do not change it.
    """
    if right_a == right_b:
        return "tie" if right_a else "both_bad"
    flipped = random.Random(key).random() < noise
    return "a" if right_a != flipped else "b"


def clear(preferences: Sequence[str]) -> int:
    """Number of preferences that name a side."""
    return sum(preference in CLEAR for preference in preferences)

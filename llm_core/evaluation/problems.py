"""The judged task: held-out problems whose answers are checked by running Python, greedily and by sampling.

No length, constant or copied question earns anything here, and the trivial methods stand beside the models to show it.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from llm_core.data import tables
from llm_core.data.bpe import Tokenizer
from llm_core.data.sources.problems import is_right, value
from llm_core.evaluation.rows import Mode, Row
from llm_core.feedback.rollout import Answer, answer
from llm_core.model.transformer import Transformer

TASK = "problems"
_ITEM = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class HeldOutProblem:
    """A problem of the validation split: in none of sft, votes and align."""

    id: str
    messages: list[dict[str, str]]
    check: str

    @property
    def question(self) -> str:
        """What the user asks last."""
        return self.messages[-1]["content"]


def held_out_problems(corpus: Path, most: int) -> list[HeldOutProblem]:
    """Checked problems of the validation split, the first `most` by id (ids are hashes, so this is a random choice)."""
    table = pq.read_table(
        tables.on_disk(corpus, "dialogues"),
        columns=["id", "messages", "check"],
        filters=[("split", "==", "validation"), ("kind", "==", "problem")],
    )
    rows = sorted((row for row in table.to_pylist() if row["check"] is not None), key=lambda row: str(row["id"]))
    return [
        HeldOutProblem(str(row["id"]), [dict(turn) for turn in row["messages"][:-1]], row["check"])
        for row in rows[:most]
    ]


def solve(
    name: str,
    model: Transformer,
    tokenizer: Tokenizer,
    problems: Sequence[HeldOutProblem],
    *,
    samples: int,
    temperature: float,
    max_new_tokens: int,
    seed: int,
    told: Callable[[int], None],
) -> tuple[list[Row], list[Answer]]:
    """A row and the answer itself for each problem and sample, in order; temperature 0 is greedy."""
    drawn = answer(
        model,
        tokenizer,
        [problem.messages for problem in problems],
        samples=samples,
        temperature=temperature,
        max_new_tokens=max_new_tokens,
        seed=seed,
        told=told,
    )
    mode: Mode = "sampled" if temperature else "greedy"
    rows = [
        Row(
            name, TASK, mode, problem.id, problem.question, given.text, float(is_right(given.text, problem.check)),
            sample=number, tokens=len(given.tokens), finished=given.finished,
        )
        for problem, answers in zip(problems, drawn, strict=True)
        for number, given in enumerate(answers)
    ]  # fmt: skip
    return rows, [given for answers in drawn for given in answers]


def baselines(problems: Sequence[HeldOutProblem]) -> list[Row]:
    """The answer that is right most often; the question copied; and its best word by position copied."""
    values = Counter(value(problem.check) for problem in problems)
    constant = min(values, key=lambda text: (-values[text], text))
    place = _best_place(problems)
    given = {
        "constant": [constant] * len(problems),
        "copied_question": [problem.question for problem in problems],
        "copied_word": [_word_at(problem, place) for problem in problems],
    }
    return [
        Row("", TASK, "greedy", p.id, p.question, text, float(is_right(text, p.check)), baseline)
        for baseline, texts in given.items()
        for p, text in zip(problems, texts, strict=True)
    ]


def _best_place(problems: Sequence[HeldOutProblem]) -> int:
    """The position in the question (from its start or its end) whose word is the right answer most often."""
    places: list[int] = [*range(8), *range(-8, 0)]
    right: dict[int, int] = {place: sum(is_right(_word_at(p, place), p.check) for p in problems) for place in places}
    return max(places, key=lambda place: right[place])


def _word_at(problem: HeldOutProblem, place: int) -> str:
    words = _ITEM.findall(problem.question)
    return words[place] if -len(words) <= place < len(words) else ""


def shuffled(rows: Sequence[Row], problems: Sequence[HeldOutProblem], seed: int) -> list[Row]:
    """A model's own answers, dealt to other prompts: what knowing only the kind of answer is worth."""
    checks = {problem.id: problem.check for problem in problems}
    order = list(range(len(rows)))
    random.Random(f"shuffled:{seed}").shuffle(order)
    return [
        Row(
            row.model, row.task, row.mode, row.prompt_id, row.prompt, rows[other].answer,
            float(is_right(rows[other].answer, checks[row.prompt_id])), "shuffled", row.sample,
        )
        for row, other in zip(rows, order, strict=True)
    ]  # fmt: skip

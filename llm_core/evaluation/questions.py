"""Multiple choice and cloze by likelihood, with the trivial methods beside the model."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from llm_core.data.bpe import Tokenizer
from llm_core.data.dialogue import encode_prompt
from llm_core.evaluation.benchmarks.docstrings import Choice, Cloze
from llm_core.evaluation.likelihood import continuations
from llm_core.evaluation.rows import Row
from llm_core.model.transformer import Transformer

CHOICES, CLOZE = "docstring_choice", "docstring_cloze"
_WORDS = re.compile(r"\w+")
_LONG_WORDS = re.compile(r"[a-z]{3,}")


def choose(name: str, model: Transformer, tokenizer: Tokenizer, items: Sequence[Choice], *, plain: bool) -> list[Row]:
    """One row an item: 1 if the true answer has the highest score of the four.

    Score = (log p(answer | question) - log p(answer | no question)) / tokens of the answer: length-normalised, and
    less what makes the answer likely by itself. `plain`: the model knows no dialogue template (base), so the question
    stands on a line of its own.
    """
    requests = []
    half = model.config.context // 2
    for item in items:
        asked, unasked = (_context(question, tokenizer, plain) for question in (item.question, ""))
        for choice in item.choices:
            tokens = tokenizer.encode(choice)[:half]
            requests += [(asked, tokens), (unasked, tokens)]
    results = continuations(model, requests)
    rows = []
    for number, item in enumerate(items):
        own = range(8 * number, 8 * number + 8, 2)
        gains = [(results[i].logprob - results[i + 1].logprob) / max(1, len(requests[i][1])) for i in own]
        rows.append(_chosen(name, item, gains.index(max(gains))))
    return rows


def _context(question: str, tokenizer: Tokenizer, plain: bool) -> list[int]:
    if plain:
        return [tokenizer.end_id, *tokenizer.encode(f"{question}\n" if question else "")]
    return encode_prompt([{"role": "user", "content": question}], tokenizer)


def _chosen(name: str, item: Choice, picked: int, baseline: str = "") -> Row:
    right = float(picked == item.answer)
    return Row(name, CHOICES, "likelihood", item.id, item.question, item.choices[picked], right, baseline)


def choice_baselines(items: Sequence[Choice]) -> list[Row]:
    """The longest choice, and the one that shares most words with the question (copying it)."""
    rows = []
    for item in items:
        lengths = [len(choice) for choice in item.choices]
        asked = set(_WORDS.findall(item.question.lower()))
        shared = [_share(asked, choice) for choice in item.choices]
        rows.append(_chosen("", item, lengths.index(max(lengths)), "longest"))
        rows.append(_chosen("", item, shared.index(max(shared)), "copied_question"))
    return rows


def _share(asked: set[str], choice: str) -> float:
    words = set(_WORDS.findall(choice.lower()))
    return len(words & asked) / max(1, len(words))


def fill(name: str, model: Transformer, tokenizer: Tokenizer, items: Sequence[Cloze]) -> list[Row]:
    """One row an item: 1 if each token of the word is the model's likeliest next token (as LAMBADA is scored)."""
    requests = [
        ([tokenizer.end_id, *tokenizer.encode(item.context)], tokenizer.encode(f" {item.answer}")) for item in items
    ]
    return [
        Row(name, CLOZE, "likelihood", item.id, item.context, item.answer, float(result.greedy))
        for item, result in zip(items, continuations(model, requests), strict=True)
    ]


def cloze_baselines(items: Sequence[Cloze]) -> list[Row]:
    """The word that is right most often, and the word most frequent in the text itself."""
    rows = []
    constant = _commonest([item.answer for item in items])
    for item in items:
        frequent = _commonest(_LONG_WORDS.findall(item.context.lower()))
        for baseline, word in (("constant", constant), ("frequent_in_context", frequent)):
            score = float(word == item.answer)
            rows.append(Row("", CLOZE, "likelihood", item.id, item.context, word, score, baseline))
    return rows


def _commonest(words: Sequence[str]) -> str:
    counted = Counter(words)
    return min(counted, key=lambda word: (-counted[word], word)) if counted else ""

"""A multiple-choice and a cloze set from the corpus's own held-out documentation.

    python -m llm_core.evaluation.benchmarks.docstrings CORPUS OUT.jsonl [--choices N] [--cloze N] [--seed N]

Multiple choice: a held-out question about a function or class, its docstring's answer, and three answers to other
held-out questions of similar length. Cloze: the words of a held-out page up to a sentence's last word, which is to be
found. An item that training may have seen is dropped and counted: where 13 consecutive words of its answer (for cloze:
of its text up to and with the answer) stand in a training page or dialogue, or, where the answer is shorter, where a
training dialogue has the same question and answer.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from llm_core.artifacts import write_atomic
from llm_core.data import tables

NGRAM = 13
NEAREST = 12  # distractors are drawn from so many answers of nearest length
CONTEXT_WORDS = (20, 60)
PER_PAGE = 10
_WORDS = re.compile(r"\w+")
_SENTENCE_END = re.compile(r"(?<=[a-z,;:)] )([a-z]{3,})\.(?=\s|$)")


@dataclass(frozen=True, slots=True)
class Choice:
    """A question with its choices, of which number `answer` is right."""

    id: str
    question: str
    choices: tuple[str, ...]
    answer: int


@dataclass(frozen=True, slots=True)
class Cloze:
    """A text that ends before a space and the word `answer`."""

    id: str
    context: str
    answer: str


@dataclass(frozen=True, slots=True)
class Benchmark:
    """The two sets, and how many items were dropped because training may have seen them."""

    choices: tuple[Choice, ...]
    cloze: tuple[Cloze, ...]
    dropped_choices: int
    dropped_cloze: int


@dataclass(frozen=True, slots=True)
class _Asked:
    """First question and last answer of a dialogue."""

    id: str
    question: str
    answer: str


def generate(corpus: Path, *, choices: int, cloze: int, seed: int) -> Benchmark:
    """At most so many items of each kind; the same corpus and seed give the same items."""
    columns = ["id", "split", "kind", "messages"]
    dialogues = pq.read_table(tables.on_disk(corpus, "dialogues"), columns=columns).to_pylist()
    held_out = [_asked(row) for row in dialogues if row["split"] == "validation" and row["kind"] == "docstring"]
    asked = sorted((item for item in held_out if item.answer), key=lambda item: item.id)
    trained = [_asked(row) for row in dialogues if row["split"] == "train"]
    blanks = _blanks(corpus, seed)
    needles = {ngram for item in asked for ngram in _ngrams(item.answer)} | {_last_words(item) for item in blanks}
    seen = _found(needles, [*_training_pages(corpus), *(f"{item.question}\n{item.answer}" for item in trained)])
    known = {(_normal(item.question), _normal(item.answer)) for item in trained}
    fresh = [
        item
        for item in asked
        if seen.isdisjoint(_ngrams(item.answer)) and (_normal(item.question), _normal(item.answer)) not in known
    ]
    kept = [item for item in blanks if _last_words(item) not in seen]
    return Benchmark(
        tuple(_choices(fresh, choices, seed)), tuple(kept[:cloze]), len(asked) - len(fresh), len(blanks) - len(kept)
    )


def _asked(row: dict[str, Any]) -> _Asked:
    turns = row["messages"]
    return _Asked(str(row["id"]), turns[0]["content"].strip(), turns[-1]["content"].strip())


def _normal(text: str) -> str:
    return " ".join(_WORDS.findall(text.lower()))


def _ngrams(text: str) -> Iterator[str]:
    """Every run of NGRAM words, in lower case, as one text; none if there are fewer words."""
    words = _WORDS.findall(text.lower())
    return (" ".join(words[i : i + NGRAM]) for i in range(len(words) - NGRAM + 1))


def _last_words(item: Cloze) -> str:
    return " ".join(_WORDS.findall(f"{item.context} {item.answer}".lower())[-NGRAM:])


def _found(needles: set[str], texts: Iterable[str]) -> set[str]:
    """The needles that stand in the texts; the texts are read once, and nothing else of them is kept."""
    return {ngram for text in texts for ngram in _ngrams(text) if ngram in needles}


def _training_pages(corpus: Path) -> Iterator[str]:
    return (text for split, text, _ in _pages(corpus) if split == "train")


def _pages(corpus: Path) -> Iterator[tuple[str, str, str]]:
    """(split, text, id) of every page."""
    for path in tables.on_disk(corpus, "documents"):
        for batch in pq.ParquetFile(path).iter_batches(512, columns=["split", "text", "id"]):
            yield from zip(*(batch.column(i).to_pylist() for i in range(3)), strict=True)


def _choices(asked: Sequence[_Asked], wanted: int, seed: int) -> Iterator[Choice]:
    """Questions in a random order, each with three other answers among those of nearest length."""
    order = list(asked)
    random.Random(f"order:{seed}").shuffle(order)
    distinct = sorted({item.answer for item in asked}, key=lambda text: (len(text), text))
    for item in order[:wanted]:
        draw = random.Random(f"{seed}:{item.id}")
        # the true answer's place among its neighbours in length is random, so that its length tells nothing
        first = distinct.index(item.answer) - draw.randint(0, NEAREST)
        first = max(0, min(first, len(distinct) - NEAREST - 1))
        others = [t for t in distinct[first : first + NEAREST + 1] if _normal(t) != _normal(item.answer)]
        if len(others) < 3:
            continue
        choices = [item.answer, *draw.sample(others, 3)]
        draw.shuffle(choices)
        yield Choice(item.id, item.question, tuple(choices), choices.index(item.answer))


def _blanks(corpus: Path, seed: int) -> list[Cloze]:
    """Sentences of held-out pages with enough words before them, a few of each page, in a random order."""
    items = []
    for split, text, page in _pages(corpus):
        if split == "validation":
            ends = [match for match in _SENTENCE_END.finditer(text) if _enough(text, match.start())]
            for match in random.Random(f"{seed}:{page}").sample(ends, min(PER_PAGE, len(ends))):
                name = f"{page}-{match.start():06d}"
                items.append(Cloze(name, _before(text, match.start()), match.group(1)))
    items.sort(key=lambda item: item.id)
    random.Random(f"cloze:{seed}").shuffle(items)
    return items


def _enough(text: str, end: int) -> bool:
    return len(text[max(0, end - 1000) : end].split()) >= CONTEXT_WORDS[0]


def _before(text: str, end: int) -> str:
    """Up to so many words before `end`, as they stand, without the space before `end`."""
    starts = [match.start() for match in re.finditer(r"\S+", text[:end])]
    return text[starts[-CONTEXT_WORDS[1] :][0] : end].rstrip()


def write_jsonl(benchmark: Benchmark, path: Path) -> None:
    """One JSON object a line, with its kind."""
    items = [{"kind": "choice"} | asdict(item) for item in benchmark.choices]
    items += [{"kind": "cloze"} | asdict(item) for item in benchmark.cloze]
    write_atomic(path, "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items).encode())


def write_sets(benchmark: Benchmark, folder: Path) -> None:
    """choice.jsonl and cloze.jsonl, as the harness's tasks generated_choice and generated_cloze read them."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, items in (("choice", benchmark.choices), ("cloze", benchmark.cloze)):
        lines = (json.dumps(asdict(item), ensure_ascii=False) + "\n" for item in items)
        write_atomic(folder / f"{name}.jsonl", "".join(lines).encode())


def main() -> None:
    """Write the sets of a corpus to a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("out", type=Path)
    for name, value in (("choices", 300), ("cloze", 200), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=value)
    given = parser.parse_args()
    benchmark = generate(given.corpus, choices=given.choices, cloze=given.cloze, seed=given.seed)
    write_jsonl(benchmark, given.out)
    print(
        f"{len(benchmark.choices)} questions ({benchmark.dropped_choices} dropped, seen in training), "
        f"{len(benchmark.cloze)} cloze items ({benchmark.dropped_cloze} dropped) -> {given.out}"
    )


if __name__ == "__main__":
    main()

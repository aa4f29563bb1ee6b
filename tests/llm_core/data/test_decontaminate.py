"""Decontamination finds every planted piece of an evaluation set, names it, and finds nothing else."""

from __future__ import annotations

import gzip
import json
import pickle
import random
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llm_core.contract import BadInput
from llm_core.data.decontaminate import Hit, Index, evaluation_files

WORDS = ("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "lambda", "omicron")


def sentence(seed: int, length: int) -> str:
    rng = random.Random(seed)
    return " ".join(f"{rng.choice(WORDS)}{rng.randrange(1000)}" for _ in range(length))


def naive(items: list[tuple[str, str, str]], text: str, n: int = 13, shortest: int = 8) -> set[tuple[str, str]]:
    """The same, by comparing all runs of words."""
    words = re.findall(r"\w+", text.lower())
    found = set()
    for name, item, said in items:
        parts = re.findall(r"\w+", said.lower())
        length = min(n, len(parts))
        runs = {tuple(parts[i : i + length]) for i in range(len(parts) - length + 1)}
        if length >= shortest and any(tuple(words[i : i + length]) in runs for i in range(len(words) - length + 1)):
            found.add((name, item))
    return found


def test_thirteen_words_in_a_row_whatever_their_case_and_punctuation() -> None:
    item = sentence(1, 30)
    index = Index([("set", "7", item)])
    words = item.split()
    piece = words[5:18]
    shown = "Before it. " + ", ".join(piece).upper() + "! And “after”."
    assert index.hits(shown) == [Hit("set", "7", " ".join(piece))]
    assert index.hits(" ".join(words[5:17])) == [], "twelve are not enough"
    assert index.hits(" ".join([*words[5:11], "other", *words[11:18]])) == []
    assert index.hits("") == []
    assert len(index) == 18


def test_short_items_are_found_whole_or_not_at_all() -> None:
    items = [("set", "eight", sentence(2, 8)), ("set", "seven", sentence(3, 7)), ("set", "twelve", sentence(4, 12))]
    index = Index(items)
    text = f"x {items[0][2]} y {items[1][2]} z {items[2][2]} end"
    assert [hit.item for hit in index.hits(text)] == ["eight", "twelve"]
    assert index.hits(" ".join(items[2][2].split()[:11])) == []


def test_agrees_with_comparing_all_runs_of_words() -> None:
    """Items, documents with pieces of them planted, and words from a small vocabulary so that much nearly agrees."""
    rng = random.Random(5)
    small = ["a", "b", "c"]
    items = [("s", str(i), " ".join(rng.choices(small, k=rng.randrange(6, 20)))) for i in range(8)]
    documents = [" ".join(rng.choices(small, k=200)) for _ in range(300)]
    documents += [
        f"{' '.join(rng.choices(small, k=30))} {item[2]} {' '.join(rng.choices(small, k=30))}" for item in items
    ]
    index = Index(items)
    for document, hits in zip(documents, index.hits_of(documents), strict=True):
        found, expected = {(hit.set, hit.item) for hit in hits}, naive(items, document)
        assert found <= expected
        assert bool(found) == bool(expected)
        assert index.hits(document) == hits


def test_pieces_never_reach_across_texts() -> None:
    words = sentence(6, 13).split()
    index = Index([("s", "0", " ".join(words)), ("s", "1", "x")])
    assert index.hits_of([" ".join(words[:6]), " ".join(words[6:]), " ".join(words)])[:2] == [[], []]
    assert not Index([("s", "0", " ".join(words[:6])), ("s", "1", " ".join(words[6:12]))])


def test_templates_are_not_looked_for() -> None:
    template = "answer the following question with one of the four letters given below it please"
    items = [("s", str(i), f"{template} {sentence(100 + i, 14)}") for i in range(30)]
    index = Index(items)
    assert index.hits(f"We say: {template}.") == []
    assert [hit.item for hit in index.hits(items[4][2])] == ["4"]


def test_other_scripts() -> None:
    chinese = "機械学習は人工知能の一分野である"
    russian = "Съешь же ещё этих мягких французских булок, да выпей чаю, и пусть всё будет хорошо"
    index = Index([("s", "zh", chinese), ("s", "ru", russian)])
    assert [hit.item for hit in index.hits(f"前文。{chinese}。後文")] == ["zh"]
    assert [hit.item for hit in index.hits(russian.upper())] == ["ru"]


def test_files_of_all_kinds_and_fields(tmp_path: Path) -> None:
    texts = [sentence(20 + i, 15) for i in range(8)]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"q": t, "meta": {"x": [texts[4]]}}) for t in texts[:1]))
    with gzip.open(tmp_path / "b.jsonl.gz", "wt") as file:
        file.write(json.dumps({"q": texts[1], "answer": texts[5]}) + "\n\n")
    (tmp_path / "c.txt").write_text(f"{texts[2]}\n\n{texts[6]}\n")
    pq.write_table(pa.table({"q": [texts[3]], "n": [1]}), tmp_path / "d.parquet")
    (tmp_path / "e.json").write_text(json.dumps([{"q": texts[7]}]))
    (tmp_path / "README.md").write_text("about")
    (tmp_path / ".gitkeep").touch()
    paths = evaluation_files(tmp_path)
    assert [path.name for path in paths] == ["a.jsonl", "b.jsonl.gz", "c.txt", "d.parquet", "e.json"]
    index = pickle.loads(pickle.dumps(Index.build(paths, fields={"b.jsonl.gz": ["q"]})))
    found = [[(hit.set, hit.item) for hit in hits] for hits in index.hits_of(texts)]
    assert found == [
        [("a.jsonl", "0")], [("b.jsonl.gz", "0")], [("c.txt", "0")], [("d.parquet", "0")], [("a.jsonl", "0")], [],
        [("c.txt", "1")], [("e.json", "0")],
    ]  # fmt: skip
    assert not Index.build([])
    assert Index.build([]).hits("anything") == []


def test_bad_files_are_named(tmp_path: Path) -> None:
    good = tmp_path / "a.jsonl"
    good.write_text('{"q": "x"}\n')
    with pytest.raises(BadInput, match=r"no evaluation set 'b\.jsonl'"):
        Index.build([good], fields={"b.jsonl": ["q"]})
    with pytest.raises(BadInput, match=r"a\.jsonl has no field 'text'"):
        Index.build([good], fields={"a.jsonl": ["text"]})
    for name, content in (
        ("x.jsonl", b"{not json"),
        ("x.jsonl.gz", b"not gzip"),
        ("x.parquet", b"PAR1"),
        ("x.txt", b"\xff\xfe\xfd"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BadInput, match=f"{name}: cannot be read as an evaluation set"):
            Index.build([tmp_path / name])
    (tmp_path / "x.xlsx").touch()
    with pytest.raises(BadInput, match=r"x\.xlsx: an evaluation set is a file of the kind"):
        evaluation_files(tmp_path)


def test_real_sets_against_an_encyclopedia_and_against_themselves(shared_data: Path) -> None:
    """GSM8K and LAMBADA are not in WikiText; each of their own long items is found, and so is BoolQ's Wikipedia."""
    paths = [shared_data / "gsm8k" / "test.jsonl", shared_data / "eval_gauntlet" / "lambada_openai.jsonl.gz"]
    index = Index.build(paths)
    lines = (shared_data / "wikitext2" / "test.txt").read_text().split("\n = ")
    assert not any(index.hits_of(lines))
    rows = [json.loads(line) for line in paths[0].read_text().splitlines()]
    assert all(index.hits_of([row["question"] for row in rows]))
    boolq = Index.build([shared_data / "eval_gauntlet" / "boolq.jsonl.gz"])
    found = [
        hit
        for hits in boolq.hits_of((shared_data / "wikitext2" / "train.txt").read_text().split("\n = "))
        for hit in hits
    ]
    assert len(found) >= 4
    assert {hit.set for hit in found} == {"boolq.jsonl.gz"}
    assert all(len(hit.words.split()) == 13 for hit in found)

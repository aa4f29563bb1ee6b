"""Duplicates: planted near-copies are found, the best copy stays, and the compact sets equal the plain ones."""

from __future__ import annotations

import random
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_core.data import minhash
from llm_core.data.dedup import Duplicates, Hashes, Index, Pieces
from llm_core.data.neardup import labels

WORDS = re.compile(r"\w+")


def shingles(text: str) -> set[tuple[str, ...]]:
    """Word 5-grams, the plain way."""
    words = WORDS.findall(text.lower())
    return {tuple(words[place : place + 5]) for place in range(len(words) - 4)}


def jaccard(a: str, b: str) -> float:
    first, second = shingles(a), shingles(b)
    return len(first & second) / len(first | second)


@pytest.fixture(scope="module")
def planted(shared_data: Path) -> tuple[list[str], list[tuple[int, int, float]]]:
    """(Wikipedia texts of 480 words with altered copies of some behind them, (original, copy, true Jaccard))."""
    words = (shared_data / "wikitext2" / "train.txt").read_text().split()[: 480 * 1_500]
    rng = random.Random(7)
    texts = [" ".join(words[start : start + 480]) for start in range(0, len(words), 480)]
    planted = []
    for original in range(0, 1_500, 3):
        share = rng.uniform(0.002, 0.05)
        copy = [rng.choice(words) if rng.random() < share else word for word in texts[original].split()]
        texts.append(" ".join(copy))
        planted.append((original, len(texts) - 1, jaccard(texts[original], texts[-1])))
    return texts, planted


@pytest.fixture(params=["rensa", "numpy"])
def algorithm(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "numpy":
        monkeypatch.setattr(minhash, "RMinHash", None)
    elif minhash.RMinHash is None:
        pytest.skip("rensa is not installed")
    name: str = request.param
    return name


def test_planted_near_duplicates_are_found(planted, algorithm: str, tmp_path: Path) -> None:
    texts, copies = planted
    found, there = minhash.signatures(texts)
    assert there.all()
    (tmp_path / "signatures").write_bytes(found.tobytes())
    assert (tmp_path / "signatures").stat().st_size == 224 * len(texts)
    label = labels(tmp_path / "signatures", np.arange(len(texts)), 0.7, tmp_path / "bands")
    close = [(a, b) for a, b, similarity in copies if similarity >= 0.8]
    assert len(close) > 200
    missed = [pair for pair in close if label[pair[0]] != label[pair[1]]]
    assert len(missed) <= len(close) // 100
    wrong = [(a, b) for b, a in enumerate(label.tolist()) if jaccard(texts[a], texts[b]) < 0.55]
    assert wrong == []


def test_estimates_are_close_to_the_truth(planted, algorithm: str) -> None:
    texts, copies = planted
    found, _ = minhash.signatures(texts)
    a, b, truth = (np.array(column) for column in zip(*copies, strict=True))
    assert np.abs(minhash.similarity(found[a], found[b]) - truth).mean() < 0.035


def test_a_signature_does_not_depend_on_its_neighbours(planted) -> None:
    texts = [
        *planted[0][:40],
        "",
        "two words",
        "x" * 70_000,
        "中文的文字没有空格而且每个字都算作一个词。",
        "𠀀𠀁𠀂𠀃𠀄𠀅",
        "\ud800 a b c d e",
    ]
    found, there = minhash.signatures(texts)
    alone = [minhash.signature(text) for text in texts]
    assert [None if not known else row.tobytes() for row, known in zip(found, there, strict=True)] == alone
    assert [len(text) for text, one in zip(texts, alone, strict=True) if one is None] == [0, 9, 70_000]
    assert minhash.signature("One two, THREE\nfour five!") == minhash.signature("one two three four five")


@given(st.lists(st.text(max_size=80), max_size=6))
def test_shingles_equal_the_plain_ones(texts: list[str]) -> None:
    texts = [re.sub(r"[^a-zA-Z0-9 ,.\n]", " ", text) for text in texts]
    hashes, offsets = minhash.shingle_hashes(texts)
    for place, text in enumerate(texts):
        mine = hashes[offsets[place] : offsets[place + 1]]
        assert len(mine) == max(len(WORDS.findall(text)) - 4, 0)
        assert len(set(mine.tolist())) == len(shingles(text))


@given(st.lists(st.integers(0, 60), max_size=200))
def test_hashes_are_a_set(keys: list[int]) -> None:
    compact, plain = Hashes(waiting=4), set()
    for key in (k * 0x1111111111111111 % 2**64 for k in keys):
        assert compact.add(key) == (key not in plain)
        plain.add(key)
    assert len(compact) == len(plain)


@settings(max_examples=30)
@given(st.permutations(range(12)))
def test_clusters_do_not_depend_on_where_signatures_stand(tmp_path_factory, order: list[int]) -> None:
    words = [f"w{number}" for number in range(60)]
    texts = [" ".join([*words[: 55 + place], f"extra{place % 3}"]) for place in range(6)]
    texts += [" ".join(words[place * 5 :]) for place in range(6)]
    found, _ = minhash.signatures(texts)
    folder = tmp_path_factory.mktemp("signatures")
    (folder / "usual").write_bytes(found.tobytes())
    (folder / "shuffled").write_bytes(found[order].tobytes())
    usual = labels(folder / "usual", np.arange(12), 0.7, folder / "bands").tolist()
    assert labels(folder / "shuffled", np.array(order), 0.7, folder / "bands").tolist() == usual
    assert len(set(usual)) < 10


def index_of(sources: list[int], sizes: list[int], ids: list[int], addresses: list[int]) -> Index:
    identity = np.array([[number, 7] for number in ids], np.uint64)
    count = len(sources)
    return Index(
        np.array(sources, np.int32),
        np.array(sizes, np.int32),
        identity,
        np.array(addresses, np.uint64),
        np.full(count, -1, np.int64),
    )


def test_the_longest_copy_stays_then_the_first() -> None:
    copies = Duplicates(index_of([0] * 6, [5, 9, 9, 4, 4, 1], [1, 1, 1, 2, 2, 3], [0] * 6))
    left = copies.by_identity(np.arange(6))
    assert left.tolist() == [1, 3, 5]
    assert copies.of.tolist() == [1, -1, 1, -1, 3, -1]
    assert copies.leaders().tolist() == [1, 1, 1, 3, 3, -1]
    assert [copies.reason(place) for place in range(6)] == ["duplicate", None, "duplicate", None, "duplicate", None]


def test_one_url_in_two_sources_stays_once_but_parts_of_a_page_stay() -> None:
    copies = Duplicates(index_of([0, 0, 1, 1, 2], [5, 6, 7, 3, 2], [1, 2, 3, 4, 5], [10, 10, 10, 10, 0]))
    assert copies.by_address(np.arange(5)).tolist() == [2, 3, 4]
    assert [copies.reason(place) for place in range(5)] == ["duplicate_url", "duplicate_url", None, None, None]


def test_a_copy_of_a_copy_leads_to_what_stays(tmp_path: Path) -> None:
    index = index_of([0, 0, 1], [5, 5, 9], [1, 1, 2], [0, 4, 4])
    copies = Duplicates(index)
    left = copies.by_address(np.arange(3))
    assert left.tolist() == [0, 2]
    copies.of[0] = 1  # as if 0 had been a copy of what is dropped already
    assert copies.leaders().tolist() == [2, 2, 2]


def test_repeated_lines_and_paragraphs() -> None:
    menu = "Home, products, services and contact us"
    lines, paragraphs = Pieces(lines=True), Pieces()
    assert lines.fresh(f"{menu}\nText of page one.\nshort") == f"{menu}\nText of page one.\nshort"
    assert lines.fresh(f"{menu}\nText of page  two is here.\nshort") == "Text of page  two is here.\nshort"
    long = "A paragraph that is longer than one hundred characters " * 3
    assert paragraphs.fresh(f"{long}\n\nfirst") == f"{long}\n\nfirst"
    assert paragraphs.fresh(f"second\n\n\n{long.replace(' ', '  ')}\n\nthird") == "second\n\nthird"
    assert (lines.removed, paragraphs.removed) == (1, 1)

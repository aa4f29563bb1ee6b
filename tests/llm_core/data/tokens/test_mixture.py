"""Weights: by the document's id alone, nested, and just as often as said; the tokenizer's sample."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_core.data import streams
from llm_core.data.mixture import LaidPart, Mixture, Sample, choose, copies, place_of
from llm_core.storage.places import Place
from llm_core.storage.products import Output

KEYS = [f"document {number}" for number in range(20_000)]


@given(st.text(), st.floats(0.01, 50), st.floats(0.01, 50))
def test_a_larger_weight_takes_what_a_smaller_takes(key: str, one: float, other: float) -> None:
    less, more = sorted((one, other))
    assert copies(key, less) <= copies(key, more)
    assert int(one) <= copies(key, one) <= int(one) + 1


@pytest.mark.parametrize("weight", [0.3, 1.0, 2.5, 7.25])
def test_on_average_a_document_stands_weight_times(weight: float) -> None:
    counts = Counter(copies(key, weight) for key in KEYS)
    assert set(counts) <= {int(weight), int(weight) + 1}
    mean = sum(times * count for times, count in counts.items()) / len(KEYS)
    assert mean == pytest.approx(weight, abs=4 * 0.5 / len(KEYS) ** 0.5)  # four standard errors at most


def test_places_are_even_and_differ_by_purpose() -> None:
    places = np.array([[place_of(purpose, key) for key in KEYS] for purpose in ("sample", "repeat")])
    assert (places >= 0).all()
    assert (places < 1).all()
    assert abs(np.corrcoef(places)[0, 1]) < 0.03
    shares = np.histogram(places[0], bins=10)[0] / len(KEYS)
    assert shares == pytest.approx(0.1, abs=0.01)


documents = st.lists(
    st.tuples(st.text(st.characters(codec="utf-8"), max_size=40), st.sampled_from([0.3, 1.0, 2.5])), max_size=40
)


@given(documents, st.integers(1, 3_000), st.randoms())
@settings(max_examples=200)
def test_the_sample_is_capped_and_does_not_depend_on_order(
    rows: list[tuple[str, float]], most: int, draw: random.Random
) -> None:
    keyed = [(f"key {number}", text, weight) for number, (text, weight) in enumerate(rows)]

    def sample(ordered: list[tuple[str, str, float]]) -> Counter[str]:
        place = np.array([place_of("sample", key) for key, _, _ in ordered])
        size = np.array([len(text.encode()) for _, text, _ in ordered], dtype=np.int64)
        found = choose(place, size, np.array([weight for _, _, weight in ordered]), most)
        return Counter(piece for key, text, weight in ordered for piece in found.take(key, weight, [text]))

    taken = sample(keyed)
    everything = Counter(text for key, text, weight in keyed for _ in Sample().take(key, weight, [text]))
    total = sum(len(text.encode()) * count for text, count in everything.items())
    size = sum(len(text.encode()) * count for text, count in taken.items())
    assert min(most, total) - 3 <= size <= most, "cut in the midst of a letter, it lacks its first bytes"
    shuffled = list(keyed)
    draw.shuffle(shuffled)
    assert sample(shuffled) == taken
    if total <= most:
        assert taken == everything


def test_one_giant_document_does_not_empty_the_sample() -> None:
    place, size = np.array([0.0, 0.5]), np.array([10_000_000, 10])
    found = choose(place, size, np.ones(2), 1_000)
    assert (found.limit, found.rest) == (0.0, 1_000)


def test_the_sample_follows_the_weights() -> None:
    place = np.array([place_of("sample", key) for key in KEYS])
    weight = np.where(np.arange(len(KEYS)) % 2, 3.0, 0.5)
    found = choose(place, np.full(len(KEYS), 100), weight, 500_000)
    taken = [sum(1 for _ in found.take(key, weight[n], ["x"])) for n, key in enumerate(KEYS)]
    heavy, light = sum(taken[1::2]), sum(taken[::2])
    assert heavy / light == pytest.approx(6.0, rel=0.2)


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.lists(st.integers(0, 60_000), min_size=1, max_size=6)),
        min_size=1,
        max_size=30,
    ),
    st.tuples(*[st.sampled_from([0.4, 1.0, 2.0, 3.5])] * 3),
    st.integers(1, 10),
)
@settings(max_examples=100, deadline=None)
def test_the_stream_is_source_by_source_and_pass_by_pass(
    tmp_path_factory: Any, rows: list[tuple[str, list[int]]], weights: tuple[float, ...], chunk: int
) -> None:
    folder: Path = tmp_path_factory.mktemp("mixture")
    by_name = dict(zip("abc", weights, strict=True))
    mixture, place = Mixture("<u2", by_name), Place(str(folder / "laid"))
    expected: list[tuple[str, int, int, list[int]]] = []
    for number, (source, ids) in enumerate(rows):
        times = copies(f"{number}", by_name[source])
        if times:
            more = times > int(by_name[source])
            name, (_, at) = streams.lay(place, [np.zeros(3, "<u2"), np.array(ids, "<u2")])
            mixture.add(LaidPart(source, "train", name, at, np.array([len(ids)]), np.array([more]), 5, 5 * more))
        expected += [(source, turn, number, ids) for turn in range(times)]
    found = mixture.stream()
    facts = found.facts
    (folder / "out").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streams, "FILE_BYTES", 2 * chunk)
        patch.setattr(streams, "WINDOW_BYTES", 3)
        output = Output(str(folder / "out"), str(folder / "partial"))
        names = [streams.join(job)[0] for job in streams.divided("train", "bin", found.runs, place, output)]
    files = [np.fromfile(folder / "out" / name, "<u2") for name in names]
    assert {len(file) for file in files[:-1]} <= {chunk}
    expected.sort(key=lambda row: row[:3])
    tokens = [token for *_, ids in expected for token in ids]
    assert np.concatenate(files).tolist() == tokens
    joined = streams.Joined(files)
    assert len(joined) == len(tokens)
    for start in range(0, len(tokens), 5):
        assert joined[start : start + 7].tolist() == tokens[start : start + 7]
        assert joined[start] == tokens[start]
    assert found.lengths.tolist() == [len(ids) for *_, ids in expected]
    assert (facts["documents"], facts["bytes"]) == (len(expected), 5 * len(expected))
    for source, (low, high) in facts["sources"].items():
        assert [row[0] for row in expected[low:high]] == [source] * (high - low)
        assert facts["mixture"][source]["stream_documents"] == high - low
    assert sorted(path.name for path in (folder / "out").iterdir()) == sorted(names)
    assert not list((folder / "partial").iterdir())

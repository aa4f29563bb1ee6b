"""Shards: what is written comes back; what is damaged or foreign is refused by name, before training starts."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_core import artifacts
from llm_core.artifacts import BrokenProduct
from llm_core.contract import BadInput
from llm_core.data import bpe
from llm_core.data.shards import Shards, ShardWriter, dtype_for


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, make_corpus: Any, run_stage: Any, rows_of: Any) -> Path:
    place = tmp_path_factory.mktemp("whole")
    talk = [
        rows_of.dialogue(f"Is {n} even?", "yes" if n % 2 == 0 else "no", ("train", "validation")[n > 8])
        for n in range(12)
    ]
    corpus = make_corpus(place / "corpus", rows_of.plain(40), talk)
    return run_stage(corpus, place)[0].path


sequences = st.lists(st.lists(st.integers(0, 65_535), max_size=20), max_size=20)


@given(sequences, sequences)
@settings(max_examples=100, deadline=None)
def test_sequences_come_back(
    tmp_path_factory: pytest.TempPathFactory, one_by_one: list[list[int]], at_once: list[list[int]]
) -> None:
    folder = tmp_path_factory.mktemp("writer")
    writer = ShardWriter(folder, "x", "<u2", extra=("mask",))
    for ids in one_by_one:
        writer.append(ids, mask=[token % 2 for token in ids])
    flat = [token for ids in at_once for token in ids]
    writer.extend(np.array(flat), np.array([len(ids) for ids in at_once]), mask=[token % 2 for token in flat])
    assert (writer.sequences, writer.tokens) == (len(one_by_one + at_once), sum(map(len, one_by_one + at_once)))
    writer.close()
    tokens, offsets = np.fromfile(folder / "x.bin", "<u2"), np.fromfile(folder / "x.offsets", "<u8")
    found = [tokens[start:stop].tolist() for start, stop in itertools.pairwise(offsets)]
    assert found == one_by_one + at_once
    assert np.fromfile(folder / "x.mask", "u1").tolist() == (tokens % 2).tolist()


def test_large_vocabularies_take_four_bytes(tmp_path: Path) -> None:
    assert (dtype_for(65_536), dtype_for(65_537)) == ("<u2", "<u4")
    writer = ShardWriter(tmp_path, "x", "<u4", extra=("mask",))
    writer.append([70_000, 1], mask=[0, 1])
    writer.append([], mask=[])
    writer.close()
    assert np.fromfile(tmp_path / "x.bin", "<u4").tolist() == [70_000, 1]
    assert np.fromfile(tmp_path / "x.offsets", "<u8").tolist() == [0, 2, 2]
    assert (tmp_path / "x.mask").read_bytes() == b"\x00\x01"


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole, tmp_path / "shards")
    return tmp_path / "shards"


def reseal(folder: Path, change: Callable[[dict[str, Any]], None] = lambda facts: None) -> None:
    """Make the manifest say what the files are now: damage done by a program, not by a disk."""
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest["facts"])
    for name in manifest["files"]:
        path = folder / name
        manifest["files"][name] = {"bytes": path.stat().st_size, "sha256": artifacts.sha256(path)}
    (folder / "manifest.json").write_bytes(artifacts.dump_json(manifest))


def test_a_flipped_bit_in_any_file_is_found(whole: Path, copy: Path) -> None:
    Shards.open(copy)
    names = json.loads((whole / "manifest.json").read_text())["files"]
    assert {"train.bin", "train.offsets", "dialogues-train.mask", "tokenizer/tokenizer.json"} <= set(names)
    for name in names:
        path = copy / name
        good = path.read_bytes()
        if good:
            path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
            with pytest.raises(BrokenProduct, match=rf"{path.name}: its bytes differ"):
                Shards.open(copy)
        path.write_bytes(good + b"x")
        with pytest.raises(BrokenProduct, match=rf"{path.name}: missing, or not of the size"):
            Shards.open(copy, verify=False)
        path.unlink()
        with pytest.raises(BrokenProduct, match=rf"{path.name}: missing"):
            Shards.open(copy)
        path.write_bytes(good)
    Shards.open(copy)


def test_truncated_ids_are_refused_even_if_the_manifest_agrees(copy: Path) -> None:
    for cut, sentence in ((3, "no whole number of ids"), (4, "the offsets end at")):
        good = (copy / "train.bin").read_bytes()
        (copy / "train.bin").write_bytes(good[:-cut])
        reseal(copy)
        with pytest.raises(BrokenProduct, match=rf"train\..*{sentence}"):
            Shards.open(copy)
        (copy / "train.bin").write_bytes(good)


@pytest.mark.parametrize("name", ["train.offsets", "validation.offsets", "dialogues-train.offsets"])
def test_offsets_that_do_not_rise_are_refused(copy: Path, name: str) -> None:
    offsets = np.fromfile(copy / name, "<u8")
    swapped = offsets.copy()
    swapped[1], swapped[2] = offsets[2], offsets[1]
    for wrong, sentence in ((swapped, "do not rise"), (offsets[1:], "do not rise"), (offsets[:-1], "end at")):
        wrong.tofile(copy / name)
        reseal(copy)
        with pytest.raises(BrokenProduct, match=f"{name}: .*{sentence}"):
            Shards.open(copy)
    (copy / name).write_bytes(offsets.tobytes()[:-3])
    reseal(copy)
    with pytest.raises(BrokenProduct, match=f"{name}: .* are no offsets"):
        Shards.open(copy)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"dtype": "<u4"}, "is not how 320 ids are written"),
        ({"dtype": "<i8"}, "is not how 320 ids are written"),
        ({"vocab_size": 70_000, "dtype": "<u4"}, "no whole number of ids|offsets end at|not the tokenizer"),
        ({"vocabulary": "0" * 64}, "tokenizer: not the tokenizer that made these shards"),
        ({"vocab_size": 319}, "not the tokenizer"),
        ({"kinds": []}, "dialogues-train.kinds: holds 0, a value that is no kinds"),
    ],
)
def test_a_manifest_that_says_otherwise_is_refused(copy: Path, change: dict[str, Any], sentence: str) -> None:
    reseal(copy, lambda facts: facts.update(change))
    with pytest.raises(BrokenProduct, match=sentence):
        Shards.open(copy)


def test_ids_and_marks_out_of_range_are_refused(copy: Path) -> None:
    for name, dtype, value in (("validation.bin", "<u2", 320), ("dialogues-validation.mask", "u1", 2)):
        good = (copy / name).read_bytes()
        wrong = np.frombuffer(good, dtype).copy()
        wrong[-1] = value
        wrong.tofile(copy / name)
        reseal(copy)
        with pytest.raises(BrokenProduct, match=f"{name}: holds {value}"):
            Shards.open(copy)
        (copy / name).write_bytes(good)


def test_the_tokenizer_of_others_is_refused(copy: Path) -> None:
    foreign = bpe.train(["some other words, of which others are made"] * 3, 320)
    shutil.rmtree(copy / "tokenizer")
    foreign.save(copy / "tokenizer")
    reseal(copy)
    with pytest.raises(BrokenProduct, match="not the tokenizer that made these shards"):
        Shards.open(copy)


def test_older_and_unreadable_manifests_are_refused(copy: Path) -> None:
    reseal(copy, lambda facts: facts.pop("vocabulary"))
    with pytest.raises(BrokenProduct, match="says nothing about 'vocabulary'"):
        Shards.open(copy)
    (copy / "manifest.json").write_text("{")
    with pytest.raises(BrokenProduct, match=r"manifest\.json: it is no JSON"):
        Shards.open(copy)


def test_another_product_is_refused(whole: Path) -> None:
    with pytest.raises(BrokenProduct, match="holds 'corpus', not 'shards'"):
        Shards.open(whole.parent / "corpus")


def test_training_does_not_begin_on_damaged_or_foreign_shards(copy: Path, tmp_path: Path) -> None:
    from llm_core.artifacts import new_product
    from llm_core.model.checkpoint import save_model
    from llm_core.model.config import ModelConfig
    from llm_core.model.transformer import Transformer
    from llm_core.settings.pretrain import PretrainConfig
    from llm_core.settings.sft import SftConfig
    from llm_core.train import pretrain, sft

    foreign = bpe.train(["other words, of which others are made"] * 3, 320)
    shape = ModelConfig.preset("qwen3", vocab_size=320, layers=1, heads=1, width=16, context=16)
    with new_product(tmp_path / "base", "base") as folder:
        save_model(Transformer(shape), folder, foreign, "base")
    events: list[object] = []
    places = {"out": tmp_path / "out", "scratch": tmp_path, "emit": events.append}
    with pytest.raises(BadInput, match=r"shards: another tokenizer than that of .*base"):
        sft.run(SftConfig(threads=1), base=tmp_path / "base", shards=copy, **places)
    path = copy / "train.bin"
    path.write_bytes(bytes([path.read_bytes()[0] ^ 4]) + path.read_bytes()[1:])
    with pytest.raises(BrokenProduct, match=r"train\.bin: its bytes differ"):
        pretrain.run(PretrainConfig(threads=1), shards=copy, **places)
    with pytest.raises(BrokenProduct, match=r"train\.bin: its bytes differ"):
        sft.run(SftConfig(threads=1), base=tmp_path / "base", shards=copy, **places)
    assert not events
    assert not (tmp_path / "out").exists()

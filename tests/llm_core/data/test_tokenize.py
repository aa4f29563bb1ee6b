"""The tokenize stage: shards that give the text back, masks, and the same bytes twice."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from llm_core import artifacts
from llm_core.artifacts import BrokenProduct
from llm_core.contract import BadInput
from llm_core.data import dialogue, tokenize
from llm_core.data.bpe import Tokenizer
from llm_core.data.shards import Shards, ShardWriter
from llm_core.settings.tokenize import TokenizeConfig


def rows(corpus: Path, name: str, split: str) -> list[dict[str, Any]]:
    return [row for row in pq.read_table(corpus / f"{name}.parquet").to_pylist() if row["split"] == split]


@pytest.fixture(scope="module")
def shards(embedded_shards: Any) -> Shards:
    return Shards.open(embedded_shards.product)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_documents_come_back(shards: Shards, embedded_corpus: Any, split: str) -> None:
    documents = rows(embedded_corpus.product, "documents", split)
    tokens, offsets = shards.tokens(split), shards.offsets(split)
    assert len(offsets) == len(documents) + 1
    assert offsets[-1] == len(tokens)
    for place, row in enumerate(documents):
        ids = tokens[offsets[place] : offsets[place + 1]]
        assert ids[-1] == shards.tokenizer.end_id
        assert shards.tokenizer.decode(ids[:-1].tolist()) == row["text"]
    assert shards.text_bytes(split) == sum(len(row["text"].encode()) for row in documents)
    assert shards.sources(split) == {"python": (0, len(documents))}


@pytest.mark.parametrize("split", ["train", "validation"])
def test_dialogues_come_back_with_their_masks(shards: Shards, embedded_corpus: Any, split: str) -> None:
    expected = rows(embedded_corpus.product, "dialogues", split)
    found = shards.dialogues(split)
    assert len(found) == len(expected)
    end = shards.tokenizer.specials["<|end|>"]
    for place in range(0, len(expected), 37):
        span = slice(int(found.offsets[place]), int(found.offsets[place + 1]))
        ids, mask, row = found.tokens[span], found.mask[span], expected[place]
        assert found.kind_names[found.kinds[place]] == row["kind"]
        trained = ids[mask == 1].tolist()
        assert trained[-1] == end
        assert shards.tokenizer.decode(trained[:-1]) == row["messages"][-1]["content"]
        prompt = dialogue.encode_prompt(row["messages"][:-1], shards.tokenizer)
        assert ids[: len(prompt)].tolist() == prompt
        assert not mask[: len(prompt)].any()


def test_feedback_problems_are_in_no_shard(shards: Shards, embedded_corpus: Any) -> None:
    total = sum(len(shards.dialogues(split)) for split in ("train", "validation"))
    feedback = len(rows(embedded_corpus.product, "dialogues", "feedback"))
    assert feedback > 2_500
    assert total == pq.read_metadata(embedded_corpus.product / "dialogues.parquet").num_rows - feedback


def test_shape_of_the_default(shards: Shards) -> None:
    assert shards.vocab_size == 2048
    assert shards.tokens("train").dtype == np.dtype("<u2")
    assert int(shards.tokens("train").max()) < shards.vocab_size
    assert 400_000 < len(shards.tokens("train")) < 700_000
    assert 0.05 < shards.text_bytes("validation") / shards.text_bytes("train") < 0.2
    problem = shards.dialogues("train").kind_names.index("problem")
    kinds = shards.dialogues("train").kinds
    lengths = np.diff(shards.dialogues("train").offsets)[kinds == problem]
    assert lengths.max() < 64, "problems fit into the smallest context"


def test_same_bytes_twice_and_with_workers(
    tmp_path: Path, embedded_corpus: Any, embedded_shards: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenize, "ALONE_BYTES", 0)
    tokenize.run(
        TokenizeConfig(workers=2),
        corpus=embedded_corpus.product,
        out=tmp_path / "shards",
        scratch=tmp_path,
        emit=lambda _: None,
    )
    assert artifacts.digest(tmp_path / "shards") == artifacts.digest(embedded_shards.product)


def test_gpt2_tokenizer_and_its_plain_template(tmp_path: Path, embedded_corpus: Any, shared_data: Path) -> None:
    config = TokenizeConfig(tokenizer="gpt2", gpt2_files=shared_data / "bpe_oracle")
    tokenize.run(config, corpus=embedded_corpus.product, out=tmp_path / "shards", scratch=tmp_path, emit=lambda _: None)
    shards = Shards.open(tmp_path / "shards")
    assert shards.vocab_size == 50257
    found = shards.dialogues("train")
    first = found.tokens[: int(found.offsets[1])].tolist()
    text = shards.tokenizer.decode(first)
    assert text.startswith("User: ")
    assert "\nAssistant: " in text
    assert text.endswith("<|endoftext|>")
    assert dialogue.stop_ids(shards.tokenizer) == {50256}


def test_damaged_shards_are_refused_by_name(tmp_path: Path, embedded_shards: Any) -> None:
    shutil.copytree(embedded_shards.product, tmp_path / "shards")
    (tmp_path / "shards" / "train.bin").write_bytes(b"1234")
    with pytest.raises(BrokenProduct, match=r"train\.bin"):
        Shards.open(tmp_path / "shards")
    with pytest.raises(BrokenProduct, match="holds 'corpus', not 'shards'"):
        Shards.open(embedded_shards.product.parent.parent / embedded_corpus_name(embedded_shards))


def embedded_corpus_name(stage: Any) -> str:
    parent = stage.product.parent.parent
    return next(str(path.relative_to(parent)) for path in sorted(parent.glob("corpus*/corpus")))


def test_large_vocabularies_take_four_bytes(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, "x", "<u4", extra=("mask",))
    writer.append([70_000, 1], mask=[0, 1])
    writer.append([], mask=[])
    writer.close()
    assert np.fromfile(tmp_path / "x.bin", "<u4").tolist() == [70_000, 1]
    assert np.fromfile(tmp_path / "x.offsets", "<u8").tolist() == [0, 2, 2]
    assert (tmp_path / "x.mask").read_bytes() == b"\x00\x01"


def test_unknown_files_are_bad_input(tmp_path: Path, embedded_corpus: Any) -> None:
    config = TokenizeConfig(tokenizer="gpt2", gpt2_files=tmp_path)
    with pytest.raises(BadInput, match="gpt2_files"):
        tokenize.run(config, corpus=embedded_corpus.product, out=tmp_path / "s", scratch=tmp_path, emit=lambda _: None)
    assert not (tmp_path / "s").exists()


def test_template_by_role_tokens(shards: Shards) -> None:
    tokenizer: Tokenizer = shards.tokenizer
    ids, mask = dialogue.encode([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], tokenizer)
    assert tokenizer.decode(ids) == "<|user|>a<|end|><|assistant|>b<|end|>"
    assert mask == [0, 0, 0, 0, 1, 1]
    assert dialogue.stop_ids(tokenizer) == {tokenizer.specials["<|end|>"], tokenizer.end_id}

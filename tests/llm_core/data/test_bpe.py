"""BPE: the reference merges, equal ids in tiktoken and `tokenizers`, GPT-2, round trips."""

from __future__ import annotations

import json
import pickle
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import regex
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_core.contract import BadInput
from llm_core.data import bpe, vocabulary
from llm_core.data.bpe import DIGITS1, GPT2, SPECIALS, Tokenizer

TEXTS = [
    "def f(x):\n    return x ** 2  # square\n",
    "Grüße! Ελληνικά, русский, 日本語, हिन्दी, عربى 👩‍🚀🎉",
    "   leading\t\ttabs and  spaces   \n\n\n end ",
    "don't we'll they've I'm it's 'quoted'",
    "1234567890 3.14159 0x1F 1,000,000",
    "<|endoftext|> <|user|> is text here",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n",
    "",
]


@pytest.fixture(scope="module")
def own() -> Tokenizer:
    return bpe.train([*TEXTS, "the cat and the dog and the bird " * 20], 600, DIGITS1)


@pytest.fixture(scope="module")
def gpt2(shared_data: Path) -> Tokenizer:
    return bpe.gpt2(shared_data / "bpe_oracle")


def test_each_merge_had_the_highest_count_at_its_turn(shared_data: Path) -> None:
    """A plain re-count; ties between equal counts are the trainer's own. 98% of the tokens equal the reference's."""
    text = (shared_data / "bpe_oracle" / "corpus.en").read_text(encoding="utf-8")
    pieces = text.split("<|endoftext|>")
    tokenizer = bpe.train(pieces, 500, GPT2, (bpe.END,))
    counts: Counter[tuple[bytes, ...]] = Counter()
    for piece in pieces:
        for word in regex.findall(GPT2, piece):
            counts[tuple(bytes([byte]) for byte in word.encode())] += 1
    pairs = bpe.merges(tokenizer.ranks)
    assert len(pairs) == 243
    for left, right in pairs:
        pair_counts: Counter[tuple[bytes, bytes]] = Counter()
        for word, count in counts.items():
            for pair in pairwise(word):
                pair_counts[pair] += count
        assert pair_counts[left, right] == max(pair_counts.values())
        counts = Counter(
            {merge_word(word, left, right): count for word, count in counts.items()}
        )  # distinct words stay distinct
    reference = json.loads((shared_data / "bpe_oracle" / "train-bpe-reference-vocab.json").read_text(encoding="utf-8"))
    expected = {bytes(vocabulary._BYTES[letter] for letter in token) for token in reference if token != "<|endoftext|>"}
    assert len(expected & set(tokenizer.ranks)) >= 0.98 * len(expected)


def merge_word(word: tuple[bytes, ...], left: bytes, right: bytes) -> tuple[bytes, ...]:
    merged: list[bytes] = []
    for part in word:
        if merged and merged[-1] == left and part == right:
            merged[-1] = left + right
        else:
            merged.append(part)
    return tuple(merged)


def test_training_is_deterministic(own: Tokenizer) -> None:
    again = bpe.train([*TEXTS, "the cat and the dog and the bird " * 20], 600, DIGITS1)
    assert again.ranks == own.ranks


def test_specials_stand_at_the_end_and_are_never_parsed(own: Tokenizer) -> None:
    assert list(own.specials.values()) == list(range(own.vocab_size - 6, own.vocab_size))
    assert tuple(own.specials) == SPECIALS
    assert own.end_id == own.specials["<|endoftext|>"]
    ids = own.encode("".join(SPECIALS))
    assert not set(ids) & set(own.specials.values())
    assert own.decode(ids) == "".join(SPECIALS)
    assert own.decode([own.specials["<|user|>"]]) == "<|user|>"


def test_digits_are_single_tokens_wherever_they_stand(own: Tokenizer) -> None:
    digits = {str(d): own.encode(str(d)) for d in range(10)}
    assert all(len(ids) == 1 for ids in digits.values())
    for text in ("42", " 42", "x42", "(42)", "\n42", "is 42 or"):
        ids = own.encode(text)
        assert [ids[i : i + 2] for i in range(len(ids))].count(digits["4"] + digits["2"]) == 1


@given(st.text())
@settings(max_examples=200)
def test_round_trip(own: Tokenizer, text: str) -> None:
    assert own.decode(own.encode(text)) == text


def test_saved_tokenizer_gives_equal_ids_everywhere(
    own: Tokenizer, gpt2: Tokenizer, tmp_path: Path, embedded_corpus: Any, embedded_shards: Any
) -> None:
    documents = pq.read_table(embedded_corpus.product / "documents.parquet").column("text").to_pylist()
    full = Tokenizer.load(embedded_shards.product / "tokenizer")
    for name, tokenizer in (("own", own), ("full", full), ("gpt2", gpt2)):
        tokenizer.save(tmp_path / name)
        loaded = Tokenizer.load(tmp_path / name)
        assert (loaded.ranks, loaded.specials, loaded.pattern) == (
            tokenizer.ranks,
            tokenizer.specials,
            tokenizer.pattern,
        )
        other = tokenizers.Tokenizer.from_file(str(tmp_path / name / "tokenizer.json"))
        texts = [text for text in TEXTS if "<|" not in text] + documents[::4]
        for text in texts:
            ids = tokenizer.encode(text)
            assert other.encode(text, add_special_tokens=False).ids == ids
            assert other.decode(ids) == text
        assert tokenizer.encode_batch(texts) == [tokenizer.encode(text) for text in texts]
        assert pickle.loads(pickle.dumps(tokenizer)).encode("the cat") == tokenizer.encode("the cat")


def test_transformers_opens_it_with_the_same_dialogue(own: Tokenizer, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    from llm_core.data import dialogue

    own.save(tmp_path)
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path)
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is 17 plus 25?"},
        {"role": "assistant", "content": "42"},
    ]
    assert len(loaded) == own.vocab_size
    text = loaded.apply_chat_template(messages, tokenize=False)
    assert loaded.encode(text) == dialogue.encode(messages, own)[0]
    prompt = loaded.apply_chat_template(messages[:2], tokenize=False, add_generation_prompt=True)
    assert loaded.encode(prompt) == dialogue.encode_prompt(messages[:2], own)


def test_gpt2_known_ids_and_merges(gpt2: Tokenizer, shared_data: Path) -> None:
    assert gpt2.vocab_size == 50257
    assert gpt2.end_id == 50256
    assert gpt2.encode("Hello world") == [15496, 995]
    vocab = json.loads((shared_data / "bpe_oracle" / "gpt2_vocab.json").read_text(encoding="utf-8"))
    assert gpt2.ranks[b" the"] == vocab["\u0120the"]
    lines = (shared_data / "bpe_oracle" / "gpt2_merges.txt").read_text(encoding="utf-8").splitlines()
    listed = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
    recovered = [(vocabulary.spell(left), vocabulary.spell(right)) for left, right in bpe.merges(gpt2.ranks)]
    assert recovered == listed


def test_gpt2_equals_transformers_own_implementation(gpt2: Tokenizer, shared_data: Path) -> None:
    byte_level = tokenizers.ByteLevelBPETokenizer(
        str(shared_data / "bpe_oracle" / "gpt2_vocab.json"), str(shared_data / "bpe_oracle" / "gpt2_merges.txt")
    )
    texts = [text for text in TEXTS if "<|" not in text]
    texts += [(shared_data / "bpe_oracle" / name).read_text(encoding="utf-8") for name in ("german.txt", "address.txt")]
    for text in texts:
        assert gpt2.encode(text) == byte_level.encode(text).ids


def test_bad_input(tmp_path: Path, own: Tokenizer) -> None:
    with pytest.raises(BadInput, match="no room"):
        bpe.train(["x"], 260)
    with pytest.raises(BadInput, match="no tokenizer here"):
        Tokenizer.load(tmp_path)
    with pytest.raises(BadInput, match="gpt2_files"):
        bpe.gpt2(tmp_path)
    with pytest.raises(BadInput, match="without gaps"):
        Tokenizer({b"a": 0, b"b": 2}, GPT2, {bpe.END: 3})
    (tmp_path / "tokenizer.json").write_text(json.dumps({"added_tokens": [], "pre_tokenizer": None, "model": {}}))
    with pytest.raises(BadInput, match="no byte-level BPE"):
        Tokenizer.load(tmp_path)

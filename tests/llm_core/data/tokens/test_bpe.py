"""BPE: the reference merges, equal ids in tiktoken and `tokenizers`, GPT-2, round trips."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import pickle
import unicodedata
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import regex
import tiktoken
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tiktoken import load
from tiktoken_ext import openai_public
from tokenizers import models, pre_tokenizers, trainers

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


anything = st.text(st.characters(exclude_categories=()), max_size=80)
"""Any characters, lone surrogates among them."""


@given(anything)
@settings(max_examples=300, deadline=None)
def test_round_trip(own: Tokenizer, text: str) -> None:
    ids = own.encode(text)
    assert own.decode(ids) == text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    assert not set(ids) & set(own.specials.values())


@given(st.lists(st.text(st.characters(codec="utf-8")), min_size=1), st.sampled_from([GPT2, DIGITS1]))
@settings(max_examples=40, deadline=None)
def test_what_was_trained_on_comes_back(texts: list[str], pattern: str) -> None:
    tokenizer = bpe.train(texts, 400, pattern)
    assert [tokenizer.decode(ids) for ids in tokenizer.encode_batch(texts)] == texts


def test_lone_surrogates_are_no_text(own: Tokenizer) -> None:
    assert own.decode(own.encode("a\ud800b \ud83d\ude00")) == "a\ufffdb \U0001f600"
    again = bpe.train(["a\ud800b " * 50, "plain"], 300)
    assert again.encode("\ud800") == again.encode("\ufffd")


@pytest.mark.parametrize(
    "text", ["x" * 10_000_000, " " * 10_000_000 + "x", "é\n" * 1_000_000], ids=["word", "blank", "lines"]
)
def test_ten_megabytes_without_a_word_end(own: Tokenizer, text: str) -> None:
    ids = own.encode_array(text)
    assert own.decode(ids.tolist()) == text
    assert bpe.train([text, "and some words"], 300).vocab_size <= 300


def test_long_words_change_no_training_that_they_are_not_in() -> None:
    """Words are cut for training only where a run is longer than any word that is worth a token."""
    words = [f"{'ab' * 400} {'word ' * 300}", "x" * (bpe.LONGEST_RUN - 1)]
    assert list(bpe._trainable(words)) == words
    pieces = list(bpe._trainable(["start " + "y" * 5_000 + " end"]))
    assert "".join(pieces) == "start " + "y" * 5_000 + " end"
    assert max(len(word) for piece in pieces for word in piece.split()) <= bpe.LONGEST_RUN


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


@pytest.fixture(scope="module")
def many_scripts(shared_data: Path) -> list[str]:
    """Real text in many scripts: encyclopedia, news, robots.txt of the world's sites, German, an address."""
    texts = [(shared_data / "bpe_oracle" / name).read_text(encoding="utf-8") for name in ("german.txt", "address.txt")]
    texts += (shared_data / "wikitext2" / "valid.txt").read_text(encoding="utf-8").split("\n = ")[:40]
    news = json.loads((shared_data / "article_extraction" / "ground-truth.json").read_text(encoding="utf-8"))
    texts += [page["articleBody"] for page in news.values()][::2]
    with gzip.open(shared_data / "robots" / "protego_real_robots.jsonl.gz", "rt", encoding="utf-8") as file:
        robots = [json.loads(line)["robots_txt"] for line in file]
    texts += ["\n".join(line for line in text.splitlines() if not line.isascii()) for text in robots[::2]]
    scripts = {unicodedata.name(letter, "?").split()[0] for text in texts for letter in text if letter.isalpha()}
    assert {"LATIN", "CYRILLIC", "ARABIC", "HEBREW", "CJK", "HANGUL", "THAI", "DEVANAGARI", "HIRAGANA"} <= scripts
    return texts


def test_gpt2_equals_tiktoken_and_tokenizers_in_many_scripts(
    gpt2: Tokenizer, shared_data: Path, tmp_path: Path, many_scripts: list[str]
) -> None:
    """tiktoken's own reader of these files, and ByteLevelBPETokenizer of `tokenizers`, both with their own pattern."""
    oracle = shared_data / "bpe_oracle"
    (tmp_path / "vocab.bpe").write_bytes(b"#version: 0.2\n" + (oracle / "gpt2_merges.txt").read_bytes())
    ranks = load.data_gym_to_mergeable_bpe_ranks(str(tmp_path / "vocab.bpe"), str(oracle / "gpt2_vocab.json"))
    reference = tiktoken.Encoding(
        "reference",
        pat_str=openai_public.r50k_pat_str,
        mergeable_ranks=ranks,
        special_tokens={bpe.END: 50256},
        explicit_n_vocab=50257,
    )
    byte_level = tokenizers.ByteLevelBPETokenizer(str(oracle / "gpt2_vocab.json"), str(oracle / "gpt2_merges.txt"))
    for text in [*many_scripts, *TEXTS]:
        ids = gpt2.encode(text)
        assert ids == reference.encode_ordinary(text)
        if "<|endoftext|>" not in text:  # which `tokenizers` would parse
            assert ids == byte_level.encode(text).ids
        assert gpt2.decode(ids) == text


def test_own_ids_equal_those_of_tokenizers_in_many_scripts(tmp_path: Path, many_scripts: list[str]) -> None:
    own = bpe.train(many_scripts, 3_000, GPT2)
    own.save(tmp_path)
    other = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert [other.encode(text, add_special_tokens=False).ids for text in many_scripts] == own.encode_batch(many_scripts)


def test_tiktoken_reads_the_saved_ranks(own: Tokenizer, tmp_path: Path) -> None:
    own.save(tmp_path)
    described = json.loads((tmp_path / "encoding.json").read_text(encoding="utf-8"))
    ranks = load.load_tiktoken_bpe(str(tmp_path / "vocab.tiktoken"))
    assert ranks == own.ranks
    encoding = tiktoken.Encoding("saved", mergeable_ranks=ranks, **described)
    for text in TEXTS:
        assert encoding.encode_ordinary(text) == own.encode(text)
    assert encoding.encode("<|user|>", allowed_special="all") == [own.specials["<|user|>"]]
    assert Tokenizer.load_tiktoken(tmp_path).digest == Tokenizer.load(tmp_path).digest == own.digest


def test_the_digest_tells_vocabularies_apart(own: Tokenizer) -> None:
    other = dict(own.ranks)
    one, two = own.ranks.keys() - {b"a", b"b"}, (b"a", b"b")
    other[two[0]], other[two[1]] = own.ranks[two[1]], own.ranks[two[0]]
    assert one
    assert Tokenizer(other, own.pattern, own.specials).digest != own.digest
    assert Tokenizer(own.ranks, GPT2, own.specials).digest != own.digest
    assert Tokenizer(dict(reversed(own.ranks.items())), own.pattern, own.specials).digest == own.digest


def test_a_tokenizer_trained_and_saved_by_others(tmp_path: Path, many_scripts: list[str]) -> None:
    made = tokenizers.Tokenizer(models.BPE())
    splitter = pre_tokenizers.Split(tokenizers.Regex(GPT2), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.pre_tokenizer = pre_tokenizers.Sequence([splitter, byte_level])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=2_000, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(many_scripts[:50], trainer)
    path = tmp_path / "tokenizer.json"
    made.save(str(path))
    loaded = Tokenizer.load(tmp_path)
    assert loaded.end_id == made.token_to_id("<|endoftext|>")
    assert loaded.encode_batch(many_scripts) == [made.encode(text).ids for text in many_scripts]
    values = json.loads(path.read_text(encoding="utf-8"))
    values["model"]["merges"].reverse()
    path.write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(BadInput, match="not in the order of its ids"):
        Tokenizer.load(tmp_path)
    values["model"]["merges"].reverse()
    path.write_text(json.dumps({**values, "normalizer": {"type": "NFC"}}), encoding="utf-8")
    with pytest.raises(BadInput, match="normalises text"):
        Tokenizer.load(tmp_path)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every request ends at a closed port of this machine; tiktoken remembers no encoding from before."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy", *bpe.CACHE_VARIABLES):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(tiktoken.registry, "ENCODINGS", {})


@pytest.mark.usefixtures("no_network")
def test_gpt2_by_tiktoken_from_its_cache(gpt2: Tokenizer, shared_data: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"gpt2_files: .* cannot be downloaded from here"):
        bpe.gpt2(None, tmp_path)
    assert bpe.gpt2_at_hand(None, tmp_path) is None
    oracle = shared_data / "bpe_oracle"
    contents = {
        "vocab.bpe": b"#version: 0.2\n" + (oracle / "gpt2_merges.txt").read_bytes(),
        "encoder.json": (oracle / "gpt2_vocab.json").read_bytes(),
    }
    for name, content in contents.items():
        address = bpe.GPT2_ADDRESS.replace("vocab.bpe", name)
        (tmp_path / hashlib.sha1(address.encode()).hexdigest()).write_bytes(content)
    assert bpe.gpt2(None, tmp_path).digest == gpt2.digest
    found = bpe.gpt2_at_hand(None, tmp_path)
    assert found is not None
    assert found.encode("Hello world") == [15496, 995]
    assert not set(bpe.CACHE_VARIABLES) & set(os.environ), "the environment is as before"


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
    with pytest.raises(BadInput, match="no special token <\\|endoftext\\|>"):
        Tokenizer({b"a": 0}, GPT2, {})
    (tmp_path / "vocab.json").write_text('{"a": 0, "\u263a": 1}')
    (tmp_path / "merges.txt").write_text("a b\n")
    with pytest.raises(BadInput, match=r"vocab\.json: this is no vocabulary"):
        bpe.gpt2(tmp_path)
    (tmp_path / "vocab.json").write_text('{"a": 0}')
    with pytest.raises(BadInput, match=r"merges\.txt: merge 1 makes 'ab'"):
        bpe.gpt2(tmp_path)
    own.save(tmp_path)
    (tmp_path / "vocab.tiktoken").write_text("no base64 at all\n")
    with pytest.raises(BadInput, match=r"vocab\.tiktoken: a line is no token"):
        Tokenizer.load_tiktoken(tmp_path)
    with pytest.raises(BadInput, match="no tokenizer here"):
        Tokenizer.load_tiktoken(tmp_path / "none")

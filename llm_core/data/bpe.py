"""Byte-level BPE: trained by `tokenizers`, encoded by tiktoken, saved so that `transformers` opens it.

A tokenizer is its ranks (the bytes of each token and its place), the pattern that cuts text into words, and special
tokens with ids after all others. Special tokens are added by id only: text that spells one is encoded as plain text.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tiktoken

from llm_core.contract import BadInput

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
DIGITS1 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""GPT-2's pattern with every digit a word of its own, so that 17 is 1 7 wherever it stands."""
END, USER, ASSISTANT, SYSTEM, TURN_END, PAD = (
    "<|endoftext|>",
    "<|user|>",
    "<|assistant|>",
    "<|system|>",
    "<|end|>",
    "<|pad|>",
)
SPECIALS = (END, USER, ASSISTANT, SYSTEM, TURN_END, PAD)
GPT2_NAMES = (("vocab.json", "merges.txt"), ("gpt2_vocab.json", "gpt2_merges.txt"))
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def byte_letters() -> dict[int, str]:
    """The printable letter that stands for each byte in vocab.json and tokenizer.json (Radford et al. 2019)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {byte: chr(byte) for byte in plain}
    for byte in range(256):
        letters.setdefault(byte, chr(256 + len(letters) - len(plain)))
    return letters


_LETTERS = byte_letters()
_BYTES = {letter: byte for byte, letter in _LETTERS.items()}


def _spell(token: bytes) -> str:
    return "".join(_LETTERS[byte] for byte in token)


def _unspell(letters: str) -> bytes:
    return bytes(_BYTES[letter] for letter in letters)


class Tokenizer:
    """Text to ids and back. `ranks` maps the bytes of each token to its id; the ids of `specials` come after."""

    def __init__(self, ranks: Mapping[bytes, int], pattern: str, specials: Mapping[str, int]) -> None:
        self.ranks = dict(ranks)
        self.pattern = pattern
        self.specials = dict(specials)
        self.vocab_size = len(self.ranks) + len(self.specials)
        self.end_id = self.specials[END]
        ids = sorted([*self.ranks.values(), *self.specials.values()])
        if ids != list(range(self.vocab_size)):
            raise BadInput("tokenizer: its ids are not 0, 1, 2 ... without gaps")

    @cached_property
    def _encoding(self) -> tiktoken.Encoding:
        return tiktoken.Encoding(
            "groundup", pat_str=self.pattern, mergeable_ranks=self.ranks, special_tokens=self.specials
        )

    def encode(self, text: str) -> list[int]:
        """Ids of a text; never a special token's."""
        return self._encoding.encode_ordinary(text)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text."""
        return [self._encoding.encode_ordinary(text) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; bytes that are no UTF-8 become replacement characters."""
        return self._encoding.decode(list(ids), errors="replace")

    def __reduce__(self) -> tuple[Any, ...]:
        return Tokenizer, (self.ranks, self.pattern, self.specials)

    def save(self, folder: Path) -> None:
        """Write tokenizer.json and tokenizer_config.json, as `transformers` reads them."""
        folder.mkdir(parents=True, exist_ok=True)
        _write_json(folder / "tokenizer.json", _as_hugging_face(self))
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": TURN_END if TURN_END in self.specials else END,
            "bos_token": END,
            "pad_token": PAD if PAD in self.specials else END,
            "clean_up_tokenization_spaces": False,
        }
        if USER in self.specials:
            config["chat_template"] = CHAT_TEMPLATE
        _write_json(folder / "tokenizer_config.json", config)

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """Read what `save` wrote. Raises `BadInput` naming the file that is missing or of another kind."""
        path = Path(folder) / "tokenizer.json"
        if not path.is_file():
            raise BadInput(f"{path}: no tokenizer here")
        values = json.loads(path.read_text(encoding="utf-8"))
        specials = {token["content"]: token["id"] for token in values["added_tokens"]}
        try:
            pattern = values["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"]
            ranks = {_unspell(letters): rank for letters, rank in values["model"]["vocab"].items()}
        except (KeyError, TypeError, IndexError) as error:
            raise BadInput(f"{path}: this tokenizer was not made here; no byte-level BPE with a pattern") from error
        return cls(ranks, pattern, specials)

    @classmethod
    def from_gpt2(cls, vocab_json: Path, merges_txt: Path) -> Tokenizer:
        """GPT-2's tokenizer from its two files. Raises `BadInput` if the two do not belong together."""
        vocab: dict[str, int] = json.loads(Path(vocab_json).read_text(encoding="utf-8"))
        specials = {name: vocab.pop(name) for name in (END,) if name in vocab}
        ranks = {_unspell(letters): rank for letters, rank in vocab.items()}
        lines = Path(merges_txt).read_text(encoding="utf-8").splitlines()
        merges = [line.split() for line in lines if line.strip() and not line.startswith("#version")]
        for place, pair in enumerate(merges):
            if ranks.get(_unspell("".join(pair))) != 256 + place:
                raise BadInput(
                    f"{merges_txt}: merge {place + 1} makes {''.join(pair)!r}, which {vocab_json} has not there"
                )
        return cls(ranks, GPT2, specials)


def gpt2(folder: Path | None) -> Tokenizer:
    """GPT-2's tokenizer from the files in `folder`; without one, from tiktoken's cache or the network.

    Raises `BadInput` with one sentence if it can be had from neither.
    """
    if folder is not None:
        for vocab, merges in GPT2_NAMES:
            if (folder / vocab).is_file() and (folder / merges).is_file():
                return Tokenizer.from_gpt2(folder / vocab, folder / merges)
        raise BadInput(
            f"tokenize.gpt2_files: {folder} holds neither vocab.json and merges.txt nor the same with gpt2_ before"
        )
    try:
        encoding = tiktoken.get_encoding("gpt2")
    except Exception as error:  # requests raises many kinds, and all mean the same here
        raise BadInput(
            "tokenize.gpt2_files: GPT-2's tokenizer cannot be downloaded from here; name a folder with its two files"
        ) from error
    ranks = dict(encoding._mergeable_ranks)
    return Tokenizer(ranks, GPT2, {END: encoding.eot_token})


def train(texts: Iterable[str], vocab_size: int, pattern: str = GPT2, specials: Sequence[str] = SPECIALS) -> Tokenizer:
    """Train a byte-level BPE of at most `vocab_size` tokens, its special tokens included (Sennrich et al. 2016).

    Fewer tokens come out where the text has no more pairs. Raises `BadInput` if there is no room for the bytes.
    """
    from tokenizers import Regex, models, pre_tokenizers, trainers
    from tokenizers import Tokenizer as HuggingFaceTokenizer

    if vocab_size < 256 + len(specials):
        raise BadInput(
            f"tokenize.vocab_size: {vocab_size} has no room for 256 bytes and {len(specials)} special tokens"
        )
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(specials),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[],
        show_progress=False,
    )
    made = HuggingFaceTokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.train_from_iterator(texts, trainer)
    ranks = {_unspell(letters): rank for letters, rank in made.get_vocab().items()}
    return Tokenizer(ranks, pattern, {name: len(ranks) + place for place, name in enumerate(specials)})


def merges(ranks: Mapping[bytes, int]) -> list[tuple[bytes, bytes]]:
    """The pair that makes each token of two bytes or more, in the order of the ranks."""
    pairs = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        if len(token) > 1:
            pairs.append(_halves(token, rank, ranks))
    return pairs


def _halves(token: bytes, rank: int, ranks: Mapping[bytes, int]) -> tuple[bytes, bytes]:
    """The two parts of a token that are left when every merge of a lower rank was applied."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        ranked = [(ranks.get(parts[i] + parts[i + 1], rank), i) for i in range(len(parts) - 1)]
        best, place = min(ranked)
        if best >= rank:
            raise BadInput(f"tokenizer: token {token!r} cannot be made from tokens of lower rank")
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
    return parts[0], parts[1]


def _as_hugging_face(tokenizer: Tokenizer) -> dict[str, Any]:
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": tokenizer.pattern}, "behavior": "Isolated", "invert": False}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    by_id = sorted(tokenizer.specials.items(), key=lambda item: item[1])
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": number, "content": name, **flags} for name, number in by_id],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {_spell(token): rank for token, rank in sorted(tokenizer.ranks.items(), key=lambda item: item[1])},
            "merges": [[_spell(left), _spell(right)] for left, right in merges(tokenizer.ranks)],
        },
    }


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")

"""A vocabulary on disk: GPT-2's letters for bytes, merges from ranks, and the files that other libraries read.

A byte-level vocabulary is its ranks (the bytes of each token and its id), the pattern that cuts text into words, and
special tokens. The merges follow from the ranks: a token of two bytes or more is made by the one pair that is left when
all merges of lower rank were applied, so that tiktoken (ranks) and `tokenizers` (merges) give equal ids.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
TOKENIZER_JSON, RANKS_FILE, ENCODING_JSON = "tokenizer.json", "vocab.tiktoken", "encoding.json"


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """`ranks`: bytes of a token to its id; `specials`: name to id, after all others."""

    ranks: dict[bytes, int]
    pattern: str
    specials: dict[str, int]

    def digest(self) -> str:
        """Hex SHA-256 of pattern, tokens and special tokens with ids: equal digests mean equal ids of any text."""
        found = hashlib.sha256(json.dumps([self.pattern, sorted(self.specials.items())]).encode())
        for token, rank in sorted(self.ranks.items(), key=lambda item: item[1]):
            found.update(f"{rank} {len(token)} ".encode() + token)
        return found.hexdigest()


def byte_letters() -> dict[int, str]:
    """The printable letter that stands for each byte in vocab.json and tokenizer.json (Radford et al. 2019)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {byte: chr(byte) for byte in plain}
    for byte in range(256):
        letters.setdefault(byte, chr(256 + len(letters) - len(plain)))
    return letters


_LETTERS = byte_letters()
_BYTES = {letter: byte for byte, letter in _LETTERS.items()}


def spell(token: bytes) -> str:
    """The letters that stand for a token's bytes."""
    return "".join(_LETTERS[byte] for byte in token)


def unspell(letters: str) -> bytes:
    """The bytes that letters stand for. Raises `KeyError` for a letter that stands for none."""
    return bytes(_BYTES[letter] for letter in letters)


def merges(ranks: Mapping[bytes, int]) -> list[tuple[bytes, bytes]]:
    """The pair that makes each token of two bytes or more, in the order of the ranks."""
    by_rank = sorted(ranks.items(), key=lambda item: item[1])
    return [_halves(token, rank, ranks) for token, rank in by_rank if len(token) > 1]


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


def write(vocabulary: Vocabulary, folder: Path) -> None:
    """Write all files: for `tokenizers` and `transformers`, and for tiktoken."""
    folder.mkdir(parents=True, exist_ok=True)
    specials = vocabulary.specials
    _write_json(folder / TOKENIZER_JSON, _as_hugging_face(vocabulary))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": TURN_END if TURN_END in specials else END,
        "bos_token": END,
        "pad_token": PAD if PAD in specials else END,
        "clean_up_tokenization_spaces": False,
    }
    if USER in specials:
        config["chat_template"] = CHAT_TEMPLATE
    _write_json(folder / "tokenizer_config.json", config)
    write_tiktoken(vocabulary, folder)


def write_tiktoken(vocabulary: Vocabulary, folder: Path) -> None:
    """Write vocab.tiktoken (a line a token: base64, space, rank) and encoding.json (pat_str, special_tokens)."""
    folder.mkdir(parents=True, exist_ok=True)
    by_rank = sorted(vocabulary.ranks.items(), key=lambda item: item[1])
    lines = [b"%s %d\n" % (base64.b64encode(token), rank) for token, rank in by_rank]
    (folder / RANKS_FILE).write_bytes(b"".join(lines))
    total = len(vocabulary.ranks) + len(vocabulary.specials)
    values = {"pat_str": vocabulary.pattern, "special_tokens": vocabulary.specials, "explicit_n_vocab": total}
    _write_json(folder / ENCODING_JSON, values)


def read_tiktoken(folder: Path) -> Vocabulary:
    """Read what `write_tiktoken` wrote. Raises `BadInput` naming the file that cannot be read."""
    path, ranks_path = folder / ENCODING_JSON, folder / RANKS_FILE
    if not path.is_file() or not ranks_path.is_file():
        raise BadInput(f"{folder}: no tokenizer here; {RANKS_FILE} and {ENCODING_JSON} are wanted")
    try:
        rows = [line.split() for line in ranks_path.read_bytes().splitlines() if line]
        ranks = {base64.b64decode(token, validate=True): int(rank) for token, rank in rows}
    except ValueError as error:
        raise BadInput(f"{ranks_path}: a line is no token in base64 with its rank") from error
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return Vocabulary(ranks, str(values["pat_str"]), {str(k): int(v) for k, v in values["special_tokens"].items()})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"{path}: pat_str and special_tokens are wanted") from error


def read_tokenizer_json(path: Path) -> Vocabulary:
    """A byte-level BPE from the file of `tokenizers`, written here or by others.

    Raises `BadInput` naming the file if it is missing, of another kind, or if ranks alone would not give its ids.
    """
    if not path.is_file():
        raise BadInput(f"{path}: no tokenizer here")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        specials = {token["content"]: int(token["id"]) for token in values["added_tokens"]}
        cutter, last = values["pre_tokenizer"]["pretokenizers"]
        pattern = cutter["pattern"]["Regex"]
        plain = values.get("normalizer") is None and last["type"] == "ByteLevel" and not last["add_prefix_space"]
        vocab = {letters: rank for letters, rank in values["model"]["vocab"].items() if letters not in specials}
        ranks = {unspell(letters): int(rank) for letters, rank in vocab.items()}
        listed = [pair.split(" ") if isinstance(pair, str) else pair for pair in values["model"]["merges"]]
        made = [ranks[unspell("".join(pair))] for pair in listed]
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise BadInput(f"{path}: this is no byte-level BPE of one pattern, such as GPT-2's or one made here") from error
    if not plain or made != sorted(rank for token, rank in ranks.items() if len(token) > 1):
        raise BadInput(f"{path}: it normalises text, or its merges are not in the order of its ids; tiktoken cannot")
    return Vocabulary(ranks, pattern, specials)


def read_gpt2(vocab_json: Path, merges_txt: Path) -> Vocabulary:
    """GPT-2's vocabulary from its two files. Raises `BadInput` if the two do not belong together."""
    try:
        vocab: dict[str, int] = json.loads(Path(vocab_json).read_text(encoding="utf-8"))
        specials = {END: vocab.pop(END)} if END in vocab else {}
        ranks = {unspell(letters): rank for letters, rank in vocab.items()}
    except (ValueError, KeyError, AttributeError) as error:
        raise BadInput(f"{vocab_json}: this is no vocabulary in GPT-2's letters") from error
    lines = Path(merges_txt).read_text(encoding="utf-8").splitlines()
    pairs = [line.split() for line in lines if line.strip() and not line.startswith("#version")]
    for place, pair in enumerate(pairs):
        if any(letter not in _BYTES for letter in "".join(pair)) or ranks.get(unspell("".join(pair))) != 256 + place:
            raise BadInput(f"{merges_txt}: merge {place + 1} makes {''.join(pair)!r}, which {vocab_json} has not there")
    return Vocabulary(ranks, GPT2, specials)


def _as_hugging_face(vocabulary: Vocabulary) -> dict[str, Any]:
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": vocabulary.pattern}, "behavior": "Isolated", "invert": False}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    by_id = sorted(vocabulary.specials.items(), key=lambda item: item[1])
    by_rank = sorted(vocabulary.ranks.items(), key=lambda item: item[1])
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
            "vocab": {spell(token): rank for token, rank in by_rank},
            "merges": [[spell(left), spell(right)] for left, right in merges(vocabulary.ranks)],
        },
    }


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")

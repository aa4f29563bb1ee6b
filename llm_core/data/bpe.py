"""Byte-level BPE: trained by `tokenizers`, encoded by tiktoken, saved so that `transformers` opens it.

Special tokens are added by id only: text that spells one is encoded as plain text. Any text that Python holds can be
encoded; what is no Unicode (lone surrogates) becomes U+FFFD, everything else comes back byte for byte.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tiktoken

from llm_core.contract import BadInput
from llm_core.data import vocabulary as files
from llm_core.data.vocabulary import (
    ASSISTANT,
    DIGITS1,
    END,
    GPT2,
    PAD,
    SPECIALS,
    SYSTEM,
    TURN_END,
    USER,
    Vocabulary,
    merges,
)

__all__ = [
    "ASSISTANT",
    "DIGITS1",
    "END",
    "GPT2",
    "PAD",
    "SPECIALS",
    "SYSTEM",
    "TURN_END",
    "USER",
    "Tokenizer",
    "gpt2",
    "gpt2_at_hand",
    "merges",
    "train",
]

GPT2_NAMES = (("vocab.json", "merges.txt"), ("gpt2_vocab.json", "gpt2_merges.txt"))
GPT2_ADDRESS = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/vocab.bpe"
CACHE_VARIABLES = ("TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR")
PATIENCE_SECONDS = 3.0
LONGEST_RUN = 1_000
"""Characters of a run without (or of nothing but) white space that training takes as one: each merge walks through all
of a word, so that a word of megabytes would take hours. Encoding cuts no words."""
_LONG_RUN = re.compile(rf"\S{{{LONGEST_RUN}}}|\s{{{LONGEST_RUN}}}")
_LONG_SPACE = re.compile(r"\s{100000}")


class Tokenizer:
    """Text to ids and back. `ranks` maps the bytes of each token to its id; the ids of `specials` come after."""

    def __init__(self, ranks: Mapping[bytes, int], pattern: str, specials: Mapping[str, int]) -> None:
        self.vocabulary = Vocabulary(dict(ranks), pattern, dict(specials))
        self.ranks, self.pattern, self.specials = self.vocabulary.ranks, pattern, self.vocabulary.specials
        self.vocab_size = len(self.ranks) + len(self.specials)
        if END not in self.specials:
            raise BadInput(f"tokenizer: it has no special token {END}, which ends a document")
        self.end_id = self.specials[END]
        ids = sorted([*self.ranks.values(), *self.specials.values()])
        if ids != list(range(self.vocab_size)):
            raise BadInput("tokenizer: its ids are not 0, 1, 2 ... without gaps")

    @cached_property
    def _encoding(self) -> tiktoken.Encoding:
        try:
            return tiktoken.Encoding(
                "groundup", pat_str=self.pattern, mergeable_ranks=self.ranks, special_tokens=self.specials
            )
        except (ValueError, TypeError, OverflowError) as error:
            raise BadInput(f"tokenizer: its pattern or its tokens cannot be used ({error})") from error

    @cached_property
    def digest(self) -> str:
        """Hex SHA-256 of the vocabulary: equal digests mean equal ids of any text."""
        return self.vocabulary.digest()

    def encode(self, text: str) -> list[int]:
        """Ids of a text; never a special token's."""
        ids: list[int] = self.encode_array(text).tolist()
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text."""
        return [self.encode(text) for text in texts]

    def encode_array(self, text: str) -> npt.NDArray[np.uint32]:
        """Ids of a text as an array [n]; never a special token's.

        Raises `BadInput` if the tokenizer's pattern or tokens, which a file of others may name, do not fit the text.
        """
        try:
            return self._encoding.encode_to_numpy(text, disallowed_special=())
        except UnicodeEncodeError:
            return self.encode_array(_as_unicode(text))
        except ValueError as error:  # the pattern backtracks over at most a million characters of white space
            pieces = _cut(text, _LONG_SPACE)
            if len(pieces) == 1:
                raise BadInput(f"tokenizer: its pattern does not cut a text ({error})") from error
            return np.concatenate([self.encode_array(piece) for piece in pieces])
        except BaseException as error:
            if type(error).__name__ != "PanicException":  # tiktoken's own, which is no Exception
                raise
            raise BadInput(f"tokenizer: its pattern or its tokens do not fit a text ({error})") from error

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; bytes that are no UTF-8 become replacement characters."""
        return self._encoding.decode(list(ids), errors="replace")

    def __reduce__(self) -> tuple[Any, ...]:
        return Tokenizer, (self.ranks, self.pattern, self.specials)

    def save(self, folder: Path) -> None:
        """Write the files that `tokenizers` and `transformers` read, and those of tiktoken."""
        files.write(self.vocabulary, folder)

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """Read tokenizer.json. Raises `BadInput` naming the file if it is missing or of another kind."""
        return cls._of(files.read_tokenizer_json(Path(folder) / files.TOKENIZER_JSON))

    @classmethod
    def load_tiktoken(cls, folder: Path) -> Tokenizer:
        """Read vocab.tiktoken and encoding.json. Raises `BadInput` naming the file that cannot be read."""
        return cls._of(files.read_tiktoken(Path(folder)))

    @classmethod
    def from_gpt2(cls, vocab_json: Path, merges_txt: Path) -> Tokenizer:
        """GPT-2's tokenizer from its two files. Raises `BadInput` if the two do not belong together."""
        return cls._of(files.read_gpt2(vocab_json, merges_txt))

    @classmethod
    def _of(cls, found: Vocabulary) -> Tokenizer:
        return cls(found.ranks, found.pattern, found.specials)


def _as_unicode(text: str) -> str:
    """Surrogate pairs joined, lone surrogates replaced by U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _cut(text: str, long: re.Pattern[str]) -> list[str]:
    """`text` in pieces that end where a match of `long` ends."""
    cuts = [0, *(match.end() for match in long.finditer(text)), len(text)]
    return [text[start:stop] for start, stop in itertools.pairwise(cuts) if start < stop]


def gpt2(folder: Path | None, cache: Path | None = None) -> Tokenizer:
    """GPT-2's tokenizer from the files in `folder`; without one, by tiktoken from `cache`, else from the network.

    `cache` None takes the folder that TIKTOKEN_CACHE_DIR names, else one in the user's cache. Raises `BadInput` with
    one sentence, within seconds, if it can be had from neither.
    """
    if folder is not None:
        for vocab, pairs in GPT2_NAMES:
            if (folder / vocab).is_file() and (folder / pairs).is_file():
                return Tokenizer.from_gpt2(folder / vocab, folder / pairs)
        raise BadInput(
            f"tokenize.gpt2_files: {folder} holds neither vocab.json and merges.txt nor the same with gpt2_ before"
        )
    with _cache_at(cache):
        try:
            if not _cached():
                _reach()
            encoding = tiktoken.get_encoding("gpt2")
        except Exception as error:  # requests raises many kinds, and all mean the same here
            raise BadInput(
                "tokenize.gpt2_files: GPT-2's tokenizer cannot be downloaded from here; name a folder with its"
                " vocab.json and merges.txt"
            ) from error
    return Tokenizer(dict(encoding._mergeable_ranks), GPT2, {END: encoding.eot_token})


def gpt2_at_hand(folder: Path | None, cache: Path | None = None) -> Tokenizer | None:
    """GPT-2's tokenizer if that takes no network, else None."""
    with _cache_at(cache):
        found = folder is not None or _cached()
    return gpt2(folder, cache) if found else None


@contextmanager
def _cache_at(cache: Path | None) -> Iterator[None]:
    """tiktoken keeps what it fetches in a temporary folder unless a variable of the environment names another."""
    if cache is None and any(name in os.environ for name in CACHE_VARIABLES):
        yield
        return
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    old = os.environ.get(CACHE_VARIABLES[0])
    os.environ[CACHE_VARIABLES[0]] = str(cache or base / "groundup" / "tiktoken")
    try:
        yield
    finally:
        if old is None:
            del os.environ[CACHE_VARIABLES[0]]
        else:
            os.environ[CACHE_VARIABLES[0]] = old


def _cached() -> bool:
    """Whether tiktoken would read both files of GPT-2 from its cache."""
    import hashlib

    folder = next((os.environ[name] for name in CACHE_VARIABLES if name in os.environ), "")
    addresses = (GPT2_ADDRESS, GPT2_ADDRESS.replace("vocab.bpe", "encoder.json"))
    return bool(folder) and all((Path(folder) / hashlib.sha1(a.encode()).hexdigest()).is_file() for a in addresses)


def _reach() -> None:
    """Raise at once where the network is out of reach: tiktoken itself would wait without end."""
    import requests

    requests.head(GPT2_ADDRESS, timeout=PATIENCE_SECONDS).raise_for_status()


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
    made.train_from_iterator(_trainable(texts), trainer)
    ranks = {files.unspell(letters): rank for letters, rank in made.get_vocab().items()}
    return Tokenizer(ranks, pattern, {name: len(ranks) + place for place, name in enumerate(specials)})


def _trainable(texts: Iterable[str]) -> Iterator[str]:
    """The texts as Unicode, in pieces where they hold very long words."""
    for text in texts:
        if not text.isascii():
            try:
                text.encode()
            except UnicodeEncodeError:
                yield from _cut(_as_unicode(text), _LONG_RUN)
                continue
        if _has_long_run(text):
            yield from _cut(text, _LONG_RUN)
        else:
            yield text


def _has_long_run(text: str) -> bool:
    """Whether a run of twice LONGEST_RUN may be in it: then a block at a multiple of LONGEST_RUN lies inside the run.

    Looks at the first word of each block only, where a search by pattern would cost an eighth of the training.
    """
    for start in range(0, len(text) - LONGEST_RUN + 1, LONGEST_RUN):
        block = text[start : start + LONGEST_RUN]
        if block.isspace() or len(block.split(None, 1)[0]) == LONGEST_RUN:
            return True
    return False

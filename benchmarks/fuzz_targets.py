"""What `benchmarks.fuzz` and tests/fuzz feed with broken input, and how such input is made.

A target takes bytes. Besides ending well it may raise what it promises (`allowed`); anything else, also a status of 500
or above, is a crash. The targets themselves stand in fuzz_readers.py and fuzz_api.py.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks import fuzz_api, fuzz_readers
from benchmarks.fuzz_words import WORDS
from llm_core import artifacts
from llm_core.contract import BadInput

CORPUS = Path(__file__).resolve().parents[1] / "tests" / "fuzz" / "corpus"


@dataclass(frozen=True)
class Target:
    """`run(data)`; `words` are pieces that its inputs are made of, for the mutator."""

    name: str
    run: Callable[[bytes], str | None]
    allowed: tuple[type[Exception], ...]
    words: tuple[bytes, ...] = ()

    def __call__(self, data: bytes) -> str:
        """Run once: what the target says, else "taken", or the name of the promised exception. Raises all else."""
        try:
            return self.run(data) or "taken"
        except self.allowed as error:
            return type(error).__name__

    def seeds(self) -> list[bytes]:
        """The kept corpus."""
        return [path.read_bytes() for path in sorted((CORPUS / self.name).glob("*")) if path.is_file()]


def _targets() -> dict[str, Target]:
    from llm_core.data.extract import Unreadable
    from llm_core.data.web.sitemaps import BadSitemap

    read = fuzz_readers
    allowed: dict[Callable[[bytes], str | None], tuple[type[Exception], ...]] = {
        read.extraction: (Unreadable,),
        read.warc: (),
        read.sitemap: (BadSitemap,),
        read.tokenizer: (BadInput, UnicodeDecodeError),
        read.shards: (BadInput,),
        read.manifest: (artifacts.BrokenProduct,),
        read.params: (BadInput,),
        fuzz_api.api: (),
    }
    return {run.__name__: Target(run.__name__, run, raises, WORDS[run.__name__]) for run, raises in allowed.items()}


TARGETS = _targets()


def mutated(draw: random.Random, corpus: list[bytes], words: tuple[bytes, ...], most: int = 20_000) -> bytes:
    """An input made from one or two of the corpus: bytes changed, pieces moved, doubled, cut, words put in."""
    data = bytearray(draw.choice(corpus) if corpus else b"")
    for _ in range(draw.choice((1, 1, 2, 3, 8))):
        place = draw.randrange(len(data) + 1)
        stop = min(len(data), place + draw.choice((1, 1, 2, 4, 16, 256)))
        match draw.randrange(8):
            case 0 if data:
                data[place % len(data)] ^= 1 << draw.randrange(8)
            case 1:
                data[place:stop] = b""
            case 2:
                data[place:place] = draw.randbytes(draw.choice((1, 2, 4, 16)))
            case 3 if words:
                data[place:place] = draw.choice(words)
            case 4 if words:
                data[place:stop] = draw.choice(words)
            case 5:
                data[place:place] = data[place:stop] * draw.choice((1, 2, 50))
            case 6 if corpus:
                other = draw.choice(corpus)
                cut = draw.randrange(len(other) + 1)
                data[place:] = other[cut:]
            case _:
                data[place:stop] = bytes(draw.choice((0, 255, 0x7F, 0x80, 10, 34)) for _ in range(stop - place))
    return bytes(data[:most])


def name_of(data: bytes) -> str:
    """A file's name in the corpus."""
    return hashlib.sha256(data).hexdigest()[:12]

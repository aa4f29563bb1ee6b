"""Token shards: raw little-endian ids with the offset of each document, mapped into memory and never copied whole.

Whoever opens shards has them checked first: every file against the manifest's sizes and SHA-256, then that the files
agree with each other and with the tokenizer beside them. That reads everything once, at about the speed of SHA-256.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llm_core.artifacts import BrokenProduct, read_manifest
from llm_core.contract import BadInput
from llm_core.data.bpe import Tokenizer
from llm_core.data.streams import Joined, file_name
from llm_core.storage import products

SPLITS = ("train", "validation")
KINDS = ("dialogue", "docstring", "problem")
DTYPES = ("<u2", "<u4")
CHUNK_BYTES = 8_000_000
Array = npt.NDArray[Any]


def dtype_for(vocab_size: int) -> str:
    """The smallest of uint16 and uint32 that holds every id, little-endian."""
    return "<u2" if vocab_size <= 1 << 16 else "<u4"


def describe(tokenizer: Tokenizer) -> dict[str, Any]:
    """What a manifest of shards says about the tokenizer that made the ids."""
    return {
        "dtype": dtype_for(tokenizer.vocab_size),
        "vocab_size": tokenizer.vocab_size,
        "vocabulary": tokenizer.digest,
        "end_id": tokenizer.end_id,
        "kinds": list(KINDS),
    }


class ShardWriter:
    """Appends sequences of ids to NAME.bin, and where each begins to NAME.offsets; `extra` files run beside the ids."""

    def __init__(self, folder: Path, name: str, dtype: str, extra: Sequence[str] = ()) -> None:
        self._stack = ExitStack()
        self._dtype = dtype
        self._folder, self._name = folder, name
        files = {suffix: (folder / f"{name}.{suffix}").open("wb") for suffix in ("bin", *extra)}
        self._files = {suffix: self._stack.enter_context(file) for suffix, file in files.items()}
        self._lengths = array("Q")
        self.tokens = 0

    def append(self, ids: Sequence[int] | Array, **extra: Sequence[int]) -> None:
        """Add one sequence; `extra` are bytes that run beside it."""
        self.extend(np.asarray(ids, dtype=self._dtype), np.array([len(ids)]), **extra)

    def extend(self, ids: Array, lengths: Array, **extra: Sequence[int] | Array) -> None:
        """Add sequences of `lengths` [n], whose ids stand one after the other."""
        self._files["bin"].write(np.ascontiguousarray(ids, dtype=self._dtype).data)
        self._lengths.frombytes(np.asarray(lengths, dtype="u8").tobytes())
        self.tokens += len(ids)
        for suffix, values in extra.items():
            self._files[suffix].write(np.asarray(values, dtype="u1").tobytes())

    @property
    def sequences(self) -> int:
        """Sequences written so far."""
        return len(self._lengths)

    def close(self) -> None:
        """Write the offsets and close all files."""
        self._stack.close()
        write_offsets(self._folder / f"{self._name}.offsets", np.frombuffer(self._lengths, dtype="u8"))


def write_offsets(path: Path, lengths: Array) -> None:
    """Where each of the sequences of `lengths` [n] begins, and where the last ends."""
    offsets = np.zeros(len(lengths) + 1, dtype="<u8")
    np.cumsum(lengths, out=offsets[1:])
    offsets.tofile(path)


@dataclass(frozen=True, slots=True)
class DialogueShards:
    """Conversations: `offsets` [n+1] into `tokens` and `mask` (1: trained on), `kinds` [n] into `kind_names`."""

    tokens: Array
    mask: Array
    offsets: Array
    kinds: Array
    kind_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.offsets) - 1


class Shards:
    """The product of `tokenize`, opened for reading."""

    def __init__(self, path: Path, manifest: dict[str, Any]) -> None:
        self.path = path
        self.facts: dict[str, Any] = manifest["facts"]
        self._files: dict[str, Any] = manifest["files"]

    @classmethod
    def open(cls, path: Path, *, verify: bool = True) -> Shards:
        """Raises `BrokenProduct` naming the file that is missing, damaged or of another tokenizer.

        Without `verify` only sizes are looked at: for whoever opened the same shards a moment before. Shards in a store
        are copied to this machine once.
        """
        path = products.local(path)
        manifest = read_manifest(path, "shards")
        wanted = {"dtype", "vocab_size", "vocabulary", "end_id", "kinds", "splits"}
        if lacking := sorted(wanted - set(manifest["facts"])):
            raise BrokenProduct(f"{path / 'manifest.json'}: it says nothing about {lacking[0]!r}; run tokenize again")
        for name, entry in manifest["files"].items():
            if not (path / name).is_file() or (path / name).stat().st_size != entry["bytes"]:
                raise BrokenProduct(f"{path / name}: missing, or not of the size that the manifest says")
        shards = cls(path, manifest)
        if verify:
            _check(shards)
        return shards

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that made the ids."""
        return Tokenizer.load(self.path / "tokenizer")

    def require_tokenizer(self, folder: Path) -> None:
        """Raise `BadInput` if the tokenizer in `folder`, a model's, is not the one that made the ids."""
        if Tokenizer.load(folder).digest != self.facts["vocabulary"]:
            raise BadInput(
                f"{self.path}: another tokenizer than that of {folder} made it; run pretrain on these shards"
            )

    @property
    def vocab_size(self) -> int:
        """Ids of the tokenizer, special tokens included."""
        return int(self.facts["vocab_size"])

    def tokens(self, split: str) -> Array:
        """Ids of a split's documents, one after the other, each with the end token behind it."""
        return self._map(split, "bin", self.facts["dtype"])

    def offsets(self, split: str) -> Array:
        """Where each document begins [n+1]."""
        return self._map(split, "offsets", "<u8")

    def text_bytes(self, split: str) -> int:
        """UTF-8 bytes of a split's documents, repeats included: what bits per byte are counted over."""
        return int(self.facts["splits"][split]["bytes"])

    def sources(self, split: str) -> dict[str, tuple[int, int]]:
        """For each source the range of its documents."""
        return {name: (low, high) for name, (low, high) in self.facts["splits"][split]["sources"].items()}

    def dialogues(self, split: str) -> DialogueShards:
        """A split's conversations."""
        name = f"dialogues-{split}"
        return DialogueShards(
            tokens=self._map(name, "bin", self.facts["dtype"]),
            mask=self._map(name, "mask", "u1"),
            offsets=self._map(name, "offsets", "<u8"),
            kinds=self._map(name, "kinds", "u1"),
            kind_names=tuple(self.facts["kinds"]),
        )

    def file(self, name: str) -> tuple[Path, dict[str, Any]]:
        """A file of the product, and its size and SHA-256. Raises `BrokenProduct` if the manifest lists none such."""
        if name not in self._files:
            raise BrokenProduct(f"{self.path / name}: the manifest lists no such file")
        return self.path / name, self._files[name]

    def files(self) -> list[str]:
        """Names of all files, sorted."""
        return sorted(self._files)

    def parts(self, stream: str, suffix: str) -> list[str]:
        """The files of a stream in order. Raises `BrokenProduct` if the manifest lists none."""
        names = [file_name(stream, suffix, 0)]
        self.file(names[0])
        while (name := file_name(stream, suffix, len(names))) in self._files:
            names.append(name)
        return names

    def _map(self, stream: str, suffix: str, dtype: str) -> Array:
        mapped = [self._map_file(name, dtype) for name in self.parts(stream, suffix)]
        return mapped[0] if len(mapped) == 1 else Joined(mapped)  # type: ignore[return-value]

    def _map_file(self, name: str, dtype: str) -> Array:
        path, entry = self.file(name)
        return np.memmap(path, dtype=dtype, mode="r") if entry["bytes"] else np.empty(0, dtype=dtype)


def _check(shards: Shards) -> None:
    """Raise `BrokenProduct` naming the first file whose bytes are not those of whole shards of their tokenizer."""
    facts = shards.facts
    if facts["dtype"] not in DTYPES or facts["dtype"] != dtype_for(facts["vocab_size"]):
        raise BrokenProduct(
            f"{shards.path / 'manifest.json'}: {facts['dtype']!r} is not how {facts['vocab_size']} ids are written"
        )
    largest = {name: _largest(shards, name) for name in shards.files()}
    if shards.tokenizer.digest != facts["vocabulary"] or shards.tokenizer.vocab_size != facts["vocab_size"]:
        raise BrokenProduct(f"{shards.path / 'tokenizer'}: not the tokenizer that made these shards")
    for name in (*SPLITS, *(f"dialogues-{split}" for split in SPLITS)):
        tokens, sequences = _check_offsets(shards, name)
        for file in shards.parts(name, "bin"):
            _limit(shards, file, largest, facts["vocab_size"], "an id that the tokenizer has not")
        if name.startswith("dialogues-"):
            for suffix, count, below in (("mask", tokens, 2), ("kinds", sequences, len(facts["kinds"]))):
                files = shards.parts(name, suffix)
                if (size := _bytes_of(shards, files)) != count:
                    raise BrokenProduct(f"{shards.path / files[0]}: {size} entries for {count}")
                for file in files:
                    _limit(shards, file, largest, below, f"a value that is no {suffix}")


def _bytes_of(shards: Shards, files: Sequence[str]) -> int:
    return sum(int(shards.file(name)[1]["bytes"]) for name in files)


def _largest(shards: Shards, name: str) -> int:
    """The largest value in a file of ids or marks, -1 for others, after its SHA-256 was found right."""
    path, entry = shards.file(name)
    kind = {".bin": shards.facts["dtype"], ".mask": "u1", ".kinds": "u1"}.get(path.suffix)
    found, largest = hashlib.sha256(), -1
    for chunk in _chunks(path):
        found.update(chunk)
        if kind is not None and len(chunk) % np.dtype(kind).itemsize == 0:
            largest = max(largest, int(np.frombuffer(chunk, dtype=kind).max()))
    if found.hexdigest() != entry["sha256"]:
        raise BrokenProduct(f"{path}: its bytes differ from the manifest")
    return largest


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


def _limit(shards: Shards, name: str, largest: dict[str, int], below: int, what: str) -> None:
    if largest[name] >= below:
        raise BrokenProduct(f"{shards.path / name}: holds {largest[name]}, {what}")


def _check_offsets(shards: Shards, name: str) -> tuple[int, int]:
    """(tokens, sequences), after it was found that the offsets cut NAME.bin into sequences."""
    size = _bytes_of(shards, shards.parts(name, "bin"))
    path, entry = shards.file(f"{name}.offsets")
    tokens, rest = divmod(size, np.dtype(shards.facts["dtype"]).itemsize)
    if rest:
        raise BrokenProduct(f"{shards.path / name}.bin: {size} bytes are no whole number of ids")
    if not entry["bytes"] or entry["bytes"] % 8:
        raise BrokenProduct(f"{path}: {entry['bytes']} bytes are no offsets")
    offsets = np.fromfile(path, dtype="<u8")
    if offsets[0] != 0 or (offsets[1:] < offsets[:-1]).any():
        raise BrokenProduct(f"{path}: the offsets do not rise from 0")
    if offsets[-1] != tokens:
        raise BrokenProduct(f"{path}: the offsets end at {offsets[-1]}, {name}.bin at {tokens}")
    return tokens, len(offsets) - 1

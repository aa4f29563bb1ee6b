"""Token shards: raw little-endian ids with the offset of each document, mapped into memory and never copied whole."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llm_core.artifacts import BrokenProduct, read_manifest
from llm_core.data.bpe import Tokenizer

SPLITS = ("train", "validation")
KINDS = ("dialogue", "docstring", "problem")
Array = npt.NDArray[Any]


def dtype_for(vocab_size: int) -> str:
    """The smallest of uint16 and uint32 that holds every id, little-endian."""
    return "<u2" if vocab_size <= 1 << 16 else "<u4"


class ShardWriter:
    """Appends sequences of ids to NAME.bin, and where each begins to NAME.offsets; `extra` files run beside the ids."""

    def __init__(self, folder: Path, name: str, dtype: str, extra: Sequence[str] = ()) -> None:
        self._stack = ExitStack()
        self._dtype = dtype
        self._folder, self._name = folder, name
        files = {suffix: (folder / f"{name}.{suffix}").open("wb") for suffix in ("bin", *extra)}
        self._files = {suffix: self._stack.enter_context(file) for suffix, file in files.items()}
        self._offsets = array("Q", [0])

    def append(self, ids: Sequence[int] | Array, **extra: Sequence[int]) -> None:
        """Add one sequence; `extra` are bytes that run beside it."""
        self._files["bin"].write(np.asarray(ids, dtype=self._dtype).tobytes())
        self._offsets.append(self._offsets[-1] + len(ids))
        for suffix, values in extra.items():
            self._files[suffix].write(bytes(values))

    @property
    def tokens(self) -> int:
        """Ids written so far."""
        return self._offsets[-1]

    @property
    def sequences(self) -> int:
        """Sequences written so far."""
        return len(self._offsets) - 1

    def close(self) -> None:
        """Write the offsets and close all files."""
        self._stack.close()
        (self._folder / f"{self._name}.offsets").write_bytes(np.asarray(self._offsets, dtype="<u8").tobytes())


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
    def open(cls, path: Path) -> Shards:
        """Raises `BrokenProduct` if the product is not whole, or a file's size differs from the manifest."""
        manifest = read_manifest(path, "shards")
        for name, entry in manifest["files"].items():
            if not (path / name).is_file() or (path / name).stat().st_size != entry["bytes"]:
                raise BrokenProduct(f"{path / name}: missing, or not of the size that the manifest says")
        return cls(path, manifest)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that made the ids."""
        return Tokenizer.load(self.path / "tokenizer")

    @property
    def vocab_size(self) -> int:
        """Ids of the tokenizer, special tokens included."""
        return int(self.facts["vocab_size"])

    def tokens(self, split: str) -> Array:
        """Ids of a split's documents, one after the other, each with the end token behind it."""
        return self._map(f"{split}.bin", self.facts["dtype"])

    def offsets(self, split: str) -> Array:
        """Where each document begins [n+1]."""
        return self._map(f"{split}.offsets", "<u8")

    def text_bytes(self, split: str) -> int:
        """UTF-8 bytes of a split's documents: what bits per byte are counted over."""
        return int(self.facts["splits"][split]["bytes"])

    def sources(self, split: str) -> dict[str, tuple[int, int]]:
        """For each source the range of its documents."""
        return {name: (low, high) for name, (low, high) in self.facts["splits"][split]["sources"].items()}

    def dialogues(self, split: str) -> DialogueShards:
        """A split's conversations."""
        name = f"dialogues-{split}"
        return DialogueShards(
            tokens=self._map(f"{name}.bin", self.facts["dtype"]),
            mask=self._map(f"{name}.mask", "u1"),
            offsets=self._map(f"{name}.offsets", "<u8"),
            kinds=self._map(f"{name}.kinds", "u1"),
            kind_names=tuple(self.facts["kinds"]),
        )

    def _map(self, name: str, dtype: str) -> Array:
        if name not in self._files:
            raise BrokenProduct(f"{self.path / name}: the manifest lists no such file")
        if not self._files[name]["bytes"]:
            return np.empty(0, dtype=dtype)
        return np.memmap(self.path / name, dtype=dtype, mode="r")

"""Compressed data of unknown origin: unpacked within a limit, because a kilobyte may hold a gigabyte of zeros."""

from __future__ import annotations

import gzip
import io
import zlib
from typing import BinaryIO, Protocol

MAX_LIST_BYTES = 512_000_000
"""Bytes of a list of entries, addresses or evaluation texts after decompression."""
GZIP = b"\x1f\x8b"


class TooLarge(OSError):
    """What is packed is larger than allowed; the message says how large that is."""


class _Readable(Protocol):
    def read(self, size: int = -1, /) -> bytes: ...


def gunzipped(data: bytes, most: int = MAX_LIST_BYTES) -> bytes:
    """The bytes of whole gzip members one after the other.

    Raises `TooLarge`, an OSError, beyond `most` bytes, and OSError for what is no whole gzip file.
    """
    with gzip.open(io.BytesIO(data)) as file:
        try:
            found = file.read(most + 1)
        except (EOFError, zlib.error) as error:
            raise OSError(f"no whole gzip file: {error}") from error
    if len(found) > most:
        raise TooLarge(f"larger than {most:,} bytes when decompressed")
    return found


def whole(file: BinaryIO, most: int) -> bytes:
    """All of a file. Raises `TooLarge` beyond `most` bytes, before they are in memory."""
    found = file.read(most + 1)
    if len(found) > most:
        raise TooLarge(f"larger than {most:,} bytes when decompressed")
    return found


class Bounded:
    """A stream that ends with `TooLarge` once `most` bytes were read since `restart` was called last."""

    def __init__(self, file: _Readable, most: int) -> None:
        self._file, self._most, self._left = file, most, most

    def read(self, size: int = -1) -> bytes:
        """Up to `size` bytes."""
        found = self._file.read(self._left + 1 if size < 0 else size)
        self._left -= len(found)
        if self._left < 0:
            raise TooLarge(f"one piece of it is larger than {self._most:,} bytes when decompressed")
        return found

    def restart(self) -> None:
        """Begin to count anew."""
        self._left = self._most

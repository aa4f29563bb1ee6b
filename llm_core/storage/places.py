"""Places for files: a folder of this machine, or a prefix of an object store named by its URL.

Stores are opened by fsspec, so whatever it has a package for will do; S3 (s3fs, the extra [scale]) is the one that is
tested. Nothing of it is imported as long as a place is a folder. Credentials and endpoints come from the environment of
each process (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL ...) and never stand in a place, which is sent to workers and written
down. What a store answers badly (5xx, slow down, no answer in time) is asked again, a bounded number of times, by the
store's own client; what is left is one sentence.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, cast

from llm_core.contract import BadInput

ATTEMPTS = 6
"""Times that a request is sent in all: after a 5xx, a request to slow down, a broken or a silent connection."""
CONNECT_SECONDS = 10.0
ANSWER_SECONDS = 60.0
"""Seconds without a byte after which an answer is given up."""
GAP, SPAN = 128_000, 16_000_000
"""Bytes: ranges of a file that lie nearer are read as one, up to so many."""


class NotThere(BadInput):
    """A file, prefix or bucket that a store does not have."""


class StoreFailed(BadInput):
    """A store that did not answer as it should, after all attempts."""


def is_url(text: str | os.PathLike[str]) -> bool:
    """Whether this names a place in a store and not on this machine."""
    return "://" in os.fspath(text)


@dataclass(frozen=True, slots=True)
class Place:
    """A folder, or a prefix in a store. Names of files are relative to it, with slashes.

    Raises `NotThere`, `StoreFailed` and `BadInput` for what happens to a store, OSError for folders.
    """

    root: str

    @property
    def remote(self) -> bool:
        """Whether it is in a store."""
        return is_url(self.root)

    def below(self, name: str) -> Place:
        """A place inside this one."""
        return Place(f"{self.root.rstrip('/')}/{name}")

    def path(self, name: str) -> str:
        """The full path or URL of a file."""
        return f"{self.root.rstrip('/')}/{name}"

    def read(self, name: str) -> bytes:
        """All bytes of a file."""
        if not self.remote:
            return Path(self.root, name).read_bytes()
        with told(self.path(name)) as store:
            return cast(bytes, store.cat_file(self.path(name)))

    def write(self, name: str, data: bytes) -> None:
        """Write a file whole; a reader sees all of it or none."""
        if self.remote:
            with told(self.path(name)) as store:
                self._make_room(store, name)
                store.pipe_file(self.path(name), data)
            return
        path = Path(self.root, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}.part")
        partial.write_bytes(data)
        partial.replace(path)

    def send(self, name: str, file: Path) -> None:
        """Copy a file of this machine here."""
        if not self.remote:
            Path(self.root, name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, Path(self.root, name))
            return
        with told(self.path(name)) as store:
            self._make_room(store, name)
            store.put_file(str(file), self.path(name))

    def _make_room(self, store: Any, name: str) -> None:
        """Object stores have no folders; what fsspec reaches besides may have."""
        if self.root.partition("://")[0] not in _FLAT:
            store.makedirs(self.path(name).rpartition("/")[0], exist_ok=True)

    def fetch(self, name: str, file: Path) -> None:
        """Copy a file from here to this machine."""
        if not self.remote:
            shutil.copyfile(Path(self.root, name), file)
            return
        with told(self.path(name)) as store:
            store.get_file(self.path(name), str(file))

    def ranges(self, wanted: Sequence[tuple[str, int, int]]) -> list[bytes]:
        """The bytes of each (name, offset, size), read many at a time."""
        if not self.remote:
            return list(_local_ranges(Path(self.root), wanted))
        reads, inside = _merged(wanted)
        with told(self.root) as store:
            paths, starts = [self.path(name) for name, _, _ in reads], [start for _, start, _ in reads]
            found = store.cat_ranges(paths, starts, [stop for _, _, stop in reads], on_error="raise")
        for (name, start, stop), data in zip(reads, found, strict=True):
            if len(data) != stop - start:
                raise StoreFailed(f"{self.path(name)}: it has fewer bytes than it had when it was written")
        return [found[at][first : first + size] for (at, first), (_, _, size) in zip(inside, wanted, strict=True)]

    def sizes(self) -> dict[str, int]:
        """Bytes of every file here, by name; none if the place does not exist."""
        if not self.remote:
            root = Path(self.root)
            return {p.relative_to(root).as_posix(): p.stat().st_size for p in root.rglob("*") if p.is_file()}
        with told(self.root) as store:
            prefix = store._strip_protocol(self.root).rstrip("/")
            found = store.find(prefix, detail=True)
        return {name[len(prefix) :].lstrip("/"): int(about["size"]) for name, about in found.items()}

    def size(self, name: str) -> int | None:
        """Bytes of one file, None if there is none such."""
        if not self.remote:
            path = Path(self.root, name)
            return path.stat().st_size if path.is_file() else None
        try:
            with told(self.path(name)) as store:
                return int(store.info(self.path(name))["size"])
        except NotThere:
            return None

    @contextmanager
    def opened(self, name: str) -> Iterator[BinaryIO]:
        """A file for reading here and there in it."""
        if not self.remote:
            with open(Path(self.root, name), "rb") as file:
                yield file
            return
        with told(self.path(name)) as store, store.open(self.path(name), "rb", cache_type="none") as file:
            yield file

    def remove(self, names: Sequence[str]) -> None:
        """Remove files that are there."""
        if not self.remote:
            for name in names:
                Path(self.root, name).unlink(missing_ok=True)
        elif names:
            with told(self.root) as store:
                store.rm([self.path(name) for name in names])

    def clear(self) -> None:
        """Remove everything."""
        if not self.remote:
            shutil.rmtree(self.root, ignore_errors=True)
        else:
            self.remove(list(self.sizes()))


def place_of(path: str | Path) -> tuple[Place, str]:
    """(the place that holds it, its name there) of a file named by path or URL."""
    folder, _, name = os.fspath(path).rpartition("/")
    return Place(folder or "."), name


@contextmanager
def told(url: str) -> Iterator[Any]:
    """The file system of a URL; what happens to it becomes one sentence."""
    try:
        yield filesystem(url.partition("://")[0])
    except FileNotFoundError as error:
        bucket = "NoSuchBucket" in repr(error.__cause__) or "bucket does not exist" in str(error)
        what = f"there is no bucket {_bucket(url)!r}" if bucket else "it is not there"
        raise NotThere(f"{url}: {what}") from error
    except PermissionError as error:
        raise BadInput(f"{url}: the store refuses access ({_line(error)})") from error
    except BadInput:
        raise
    except Exception as error:
        if type(error).__name__ in _CREDENTIALS:
            raise BadInput(
                f"{url}: no credentials for it; they are taken from the environment, such as AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY"
            ) from error
        if isinstance(error, OSError | TimeoutError) or type(error).__module__.startswith(_CLIENTS):
            raise StoreFailed(
                f"{url}: the store does not answer as it should ({_line(error)}); run again once it does"
            ) from error
        raise


_FLAT = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "oci", "oss"})
_CREDENTIALS = frozenset({"NoCredentialsError", "PartialCredentialsError", "TokenRetrievalError"})
_CLIENTS = ("botocore", "aiobotocore", "aiohttp", "s3fs", "fsspec")


@lru_cache(8)
def filesystem(scheme: str) -> Any:
    """fsspec's file system of a scheme, such as s3. Raises `BadInput` for one that cannot be had."""
    try:
        import fsspec

        options: dict[str, Any] = {"skip_instance_cache": True}
        if scheme in ("s3", "s3a"):
            waits = {"connect_timeout": CONNECT_SECONDS, "read_timeout": ANSWER_SECONDS}
            retries = {"mode": "standard", "total_max_attempts": ATTEMPTS}
            options |= {"config_kwargs": {**waits, "retries": retries}, "use_listings_cache": False}
        store = fsspec.filesystem(scheme, **options)
    except ImportError as error:
        raise BadInput(
            f"storage: {scheme}:// needs a package that is not installed ({_line(error)}); for s3 it is in the extra "
            "[scale]: pip install -e '.[scale]'"
        ) from error
    except ValueError as error:
        raise BadInput(f"storage: nothing is known of {scheme}:// ({_line(error)})") from error
    if scheme in ("s3", "s3a"):
        store.retries = 2  # of a body that ends early; the client itself has asked ATTEMPTS times by then
    return store


def _bucket(url: str) -> str:
    return url.partition("://")[2].partition("/")[0]


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:200] + "..."


def _local_ranges(root: Path, wanted: Sequence[tuple[str, int, int]]) -> Iterator[bytes]:
    files: dict[str, int] = {}
    try:
        for name, offset, size in wanted:
            if name not in files:
                files[name] = os.open(root / name, os.O_RDONLY)
            yield os.pread(files[name], size, offset)
    finally:
        for file in files.values():
            os.close(file)


def _merged(wanted: Sequence[tuple[str, int, int]]) -> tuple[list[tuple[str, int, int]], list[tuple[int, int]]]:
    """(name, start, stop) of what is read, and for each that is wanted (number of the read, where it begins in it)."""
    reads: list[tuple[str, int, int]] = []
    inside: list[tuple[int, int]] = [(0, 0)] * len(wanted)
    for place in sorted(range(len(wanted)), key=lambda place: wanted[place][:2]):
        name, offset, size = wanted[place]
        last = reads[-1] if reads else ("", 0, 0)
        near = offset <= last[2] + GAP and max(offset + size, last[2]) - last[1] <= SPAN
        if reads and last[0] == name and near:
            reads[-1] = (name, last[1], max(last[2], offset + size))
        else:
            reads.append((name, offset, offset + size))
        inside[place] = (len(reads) - 1, offset - reads[-1][1])
    return reads, inside

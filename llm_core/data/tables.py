"""Tables of a product: NAME.parquet, and where they are many rows NAME-00001.parquet and so on behind it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from llm_core.storage import products
from llm_core.storage.products import Blob


def table_name(table: str, number: int) -> str:
    """The file of a table's part."""
    return f"{table}.parquet" if number == 0 else f"{table}-{number:05d}.parquet"


def parts(there: Mapping[str, Blob], table: str) -> list[Blob]:
    """The files of a table in order, of those that a product has."""
    return [there[name] for name in in_order(table, there)]


def on_disk(product: Path, table: str) -> list[Path]:
    """The files of a table in order, on this machine: those of a product in a store are copied first."""
    if products.store_of(product) is None:
        names = [path.name for path in product.glob(f"{table}*.parquet")]
        return [product / name for name in in_order(table, names)]
    names = in_order(table, products.blobs(product))
    folder = products.local(product, names)
    return [folder / name for name in names]


def in_order(table: str, names: Iterable[str]) -> list[str]:
    """Those of the names that are files of a table, in order."""
    found: list[tuple[int, str]] = []
    for name in names:
        stem = name.removesuffix(".parquet")
        if stem == table:
            found.append((0, name))
        elif stem != name and stem.startswith(f"{table}-") and stem[len(table) + 1 :].isdecimal():
            found.append((int(stem[len(table) + 1 :]), name))
    return [name for _, name in sorted(found)]


@contextmanager
def opened(file: Blob | Path) -> Iterator[Any]:
    """A Parquet file, its footer read once in a process."""
    if isinstance(file, Path):
        with pq.ParquetFile(file) as parquet:
            yield parquet
        return
    if not file.place.remote:
        with pq.ParquetFile(file.path, metadata=metadata(file), pre_buffer=False) as parquet:
            yield parquet
        return
    known = metadata(file)
    with file.place.opened(file.key) as source, pq.ParquetFile(source, metadata=known, pre_buffer=True) as parquet:
        yield parquet


@lru_cache(64)
def metadata(file: Blob) -> Any:
    """The footer of a Parquet file."""
    if not file.place.remote:
        return pq.read_metadata(file.path)
    with file.place.opened(file.key) as source:
        return pq.read_metadata(source)

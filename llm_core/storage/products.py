"""Products whose files lie in a store.

On this machine such a product is two small files: the manifest, the same bytes as of a product on disk, and store.json
with the URL; DVC versions these. In the store each file lies under its SHA-256, so nothing there is ever written over,
a file that two versions share is there once, and who repeats a piece of work repeats the same bytes. The manifest is
copied there last: where it is absent, the product was not finished.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_core import artifacts
from llm_core.artifacts import MANIFEST, BrokenProduct, Entry, read_manifest, sha256
from llm_core.storage.places import NotThere, Place

POINTER = "store.json"
COPIES_VARIABLE = "GROUNDUP_STORE_CACHE"
"""Environment variable: where copies of files of a store are kept on this machine; else ~/.cache/groundup/store."""
AT_ONCE = 8
ABOUT = b"""Products of Groundup. files/ holds their files by SHA-256, manifests/ what each product consists of,
scratch/ what a run lays down while it works: what is older than the longest run there is of no use.
"""


@dataclass(frozen=True, slots=True)
class Output:
    """Where the files of a product go that is being made, from whatever process writes them."""

    folder: str
    """The folder that becomes the product; only of use where `url` is None."""
    partial: str
    """A folder on the same disk, for files that are not whole yet."""
    url: str | None = None

    def put(self, name: str, fill: Callable[[Path], None]) -> tuple[str, Entry]:
        """Let `fill` write a file, and put it whole into the product under this name: (name, its entry)."""
        if self.url is None:
            Path(self.partial).mkdir(parents=True, exist_ok=True)
            path = Path(self.partial, uuid.uuid4().hex)
            try:
                fill(path)
                path.replace(Path(self.folder, name))
            finally:
                path.unlink(missing_ok=True)
            return name, {}  # the manifest's maker reads it anyway
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "file")
            fill(path)
            return name, _keep(Place(self.url), path)


def _keep(store: Place, path: Path) -> Entry:
    """Copy a file into a store under its SHA-256, unless it is there; its entry."""
    entry = {"bytes": path.stat().st_size, "sha256": sha256(path)}
    key = key_of(entry)
    if store.size(key) != entry["bytes"]:
        store.send(key, path)
    return entry


def key_of(entry: Entry) -> str:
    """Where a store has the file of a manifest's entry."""
    digest = str(entry["sha256"])
    return f"files/{digest[:2]}/{digest}"


def manifest_key(digest: str) -> str:
    """Where a store has the manifest of this SHA-256."""
    return f"manifests/{digest}.json"


class Making:
    """A product that is being made: small files go into `folder`, large ones by `output` from any process."""

    def __init__(self, folder: Path, output: Output) -> None:
        self.folder, self.output = folder, output
        self._entries: dict[str, Entry] = {}

    def add(self, name: str, entry: Entry) -> None:
        """Take in what `output.put` returned elsewhere."""
        self._entries[name] = entry

    def take(self, folder: Path) -> Mapping[str, Entry]:
        """Copy the files of the folder into the store and remove them; leave the pointer."""
        assert self.output.url is not None
        store = Place(self.output.url)
        names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        with ThreadPoolExecutor(AT_ONCE) as pool:
            kept = list(pool.map(lambda name: _keep(store, folder / name), names))
        for name in names:
            (folder / name).unlink()
        for path in sorted((path for path in folder.rglob("*") if path.is_dir()), reverse=True):
            path.rmdir()
        (folder / POINTER).write_bytes(artifacts.dump_json({"url": self.output.url}))
        return dict(sorted({**self._entries, **dict(zip(names, kept, strict=True))}.items()))

    def publish(self, manifest: bytes) -> None:
        """Copy the manifest into the store."""
        assert self.output.url is not None
        Place(self.output.url).write(manifest_key(hashlib.sha256(manifest).hexdigest()), manifest)


@contextmanager
def new_product(
    out: Path, kind: str, facts: Mapping[str, Any], *, partial: Path, url: str | None = None
) -> Iterator[Making]:
    """As `artifacts.new_product`, for a product that several processes write; with `url`, its files go to a store."""
    staging = out.with_name(f".{out.name}.part")
    making = Making(staging, Output(str(staging), str(partial), url))
    try:
        with artifacts.new_product(out, kind, facts, making if url else None):
            yield making
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def begin(url: str | None) -> None:
    """See that a store can be written to before the work begins. Raises `BadInput` in one sentence."""
    if url is not None:
        Place(url).write("README.txt", ABOUT)


def scratch(url: str | None, folder: Path, name: str) -> Place:
    """A place for what waits: `folder`/`name`, or a prefix of its own in a store, the same one until it is cleared.

    What was begun in a store goes on there, also without a `url`.
    """
    file = folder / f"{name}.place"
    if file.is_file() and (url is None or file.read_text().startswith(f"{url}/scratch/")):
        return Place(file.read_text())
    if url is None:
        (folder / name).mkdir(parents=True, exist_ok=True)
        return Place(str(folder / name))
    folder.mkdir(parents=True, exist_ok=True)
    place = Place(f"{url}/scratch/{name}-{uuid.uuid4().hex}")
    artifacts.write_atomic(file, place.root.encode())
    return place


def cleared(place: Place, folder: Path, name: str) -> None:
    """Remove what waited, here and there."""
    place.clear()
    shutil.rmtree(folder / name, ignore_errors=True)
    (folder / f"{name}.place").unlink(missing_ok=True)


def store_of(product: Path) -> Place | None:
    """The store of a product's files; None if they are in its folder. Raises `BrokenProduct` for a damaged pointer."""
    path = product / POINTER
    if not path.is_file():
        return None
    try:
        return Place(str(json.loads(path.read_text())["url"]))
    except (ValueError, KeyError, TypeError) as error:
        raise BrokenProduct(f"{path}: it names no store; it was damaged after it was written") from error


@dataclass(frozen=True, slots=True)
class Blob:
    """A file of a product, wherever it lies; `digest` tells it from another that had the same place."""

    name: str
    place: Place
    key: str
    size: int
    digest: str

    @property
    def path(self) -> str:
        """Path or URL."""
        return self.place.path(self.key)


def blobs(product: Path, kind: str | None = None) -> dict[str, Blob]:
    """The files of a product by name. Raises `BrokenProduct` if it is not whole, here or in its store."""
    entries: dict[str, Entry] = read_manifest(product, kind)["files"]
    store = store_of(product)
    if store is not None:
        _see_published(product, store)
    place = store or Place(str(product))
    return {
        name: Blob(name, place, key_of(entry) if store else name, int(entry["bytes"]), str(entry["sha256"]))
        for name, entry in entries.items()
    }


def reachable(product: Path, kind: str, url: str | None) -> dict[str, Blob]:
    """The files of a product where workers reach them that see no folder of ours: copied into the store if need be."""
    found = blobs(product, kind)
    if url is None or store_of(product) is not None:
        return found
    store = Place(url)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        keys = list(pool.map(lambda blob: key_of(_keep(store, Path(blob.path))), found.values()))
    return {
        blob.name: Blob(blob.name, store, key, blob.size, blob.digest)
        for blob, key in zip(found.values(), keys, strict=True)
    }


def _see_published(product: Path, store: Place) -> None:
    digest = sha256(product / MANIFEST)
    key = manifest_key(digest)
    try:
        found = store.read(key)
    except NotThere as error:
        raise BrokenProduct(
            f"{product}: the store {store.root} has no whole product for it (no {key}); run the stage that makes it"
        ) from error
    if hashlib.sha256(found).hexdigest() != digest:
        raise BrokenProduct(f"{store.path(key)}: its bytes differ from {product / MANIFEST}")


def verify(product: Path) -> None:
    """Raise `BrokenProduct` naming the first file that is not as the manifest says.

    Files on disk are read; of files in a store it is seen that they are there with their size: whoever reads them
    whole compares their SHA-256, and the store itself guards what it holds.
    """
    store = store_of(product)
    if store is None:
        artifacts.verify(product)
        return
    found = list(blobs(product).values())
    with ThreadPoolExecutor(AT_ONCE) as pool:
        sizes = pool.map(lambda blob: store.size(blob.key), found)
        for blob, size in zip(found, sizes, strict=True):
            if size != blob.size:
                what = "missing" if size is None else f"of {size} bytes"
                raise BrokenProduct(f"{blob.path}: {what}, though the manifest lists {blob.name} of {blob.size} bytes")


def local(product: Path, names: Iterable[str] | None = None) -> Path:
    """A folder of this machine with these files of a product (None: all): its own, or one of copies.

    Copies are compared with the manifest's SHA-256 once, when they are made. Raises `BrokenProduct`.
    """
    if store_of(product) is None:
        return product
    folder = copies() / sha256(product / MANIFEST)
    there = blobs(product)
    wanted = [there[name] for name in (there if names is None else names) if name in there]
    missing = [blob for blob in wanted if not (folder / blob.name).is_file()]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(lambda blob: _fetch(blob, folder / blob.name), missing))
    if not (folder / MANIFEST).is_file():
        folder.mkdir(parents=True, exist_ok=True)
        artifacts.write_atomic(folder / MANIFEST, (product / MANIFEST).read_bytes())
    return folder


def laid_open(files: Mapping[str, Path]) -> dict[str, Path]:
    """The files of a product by name, those of a store copied to this machine, given what is there of it by name."""
    if POINTER not in files:
        return dict(files)
    folder = copies() / "pointers" / sha256(files[MANIFEST])
    folder.mkdir(parents=True, exist_ok=True)
    for name in (MANIFEST, POINTER):
        artifacts.write_atomic(folder / name, files[name].read_bytes())
    here, names = local(folder), read_manifest(folder)["files"]
    return {**files, **{name: here / name for name in names}}


def discard(files: Mapping[str, Path]) -> int:
    """Remove a product from its store, given what is here of it by name: files that no other manifest there lists.

    The manifest goes first, so that nobody takes the rest for whole. How many files went; 0 without a store.
    """
    if POINTER not in files:
        return 0
    store = Place(str(json.loads(files[POINTER].read_text())["url"]))
    mine = {key_of(entry) for entry in json.loads(files[MANIFEST].read_text())["files"].values()}
    store.remove([key for key in [manifest_key(sha256(files[MANIFEST]))] if store.size(key) is not None])
    for name in store.below("manifests").sizes():
        others = json.loads(store.read(f"manifests/{name}"))["files"].values()
        mine -= {key_of(entry) for entry in others}
    there = [key for key in sorted(mine) if store.size(key) is not None]
    store.remove(there)
    shutil.rmtree(copies() / sha256(files[MANIFEST]), ignore_errors=True)
    return len(there)


def copies() -> Path:
    """Where copies of files of stores are kept on this machine."""
    return Path(os.environ.get(COPIES_VARIABLE) or Path.home() / ".cache" / "groundup" / "store")


def _fetch(blob: Blob, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        blob.place.fetch(blob.key, partial)
        if partial.stat().st_size != blob.size or sha256(partial) != blob.digest:
            raise BrokenProduct(f"{blob.path}: its bytes differ from the manifest")
        partial.replace(target)
    except NotThere as error:
        raise BrokenProduct(f"{blob.path}: missing, though the manifest lists {blob.name}") from error
    finally:
        partial.unlink(missing_ok=True)

"""What `benchmarks.fuzz` feeds with broken input: all that reads what others wrote, but for the API (fuzz_api.py).

Each target takes bytes.
"""

from __future__ import annotations

import json
import os
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from llm_core import artifacts

TEXT = "the quick brown fox jumps over the lazy dog; what is seven plus five? h\u00e9llo \u65e5\u672c\u8a9e 0123456789 "


class Wrong(AssertionError):
    """A target ended, but with a wrong result."""


@cache
def folder() -> Path:
    """A folder for this process's files, in memory where the system has such a place."""
    memory = Path("/dev/shm")
    place = tempfile.TemporaryDirectory(prefix="fuzz-", dir=memory if os.access(memory, os.W_OK) else None)
    globals()["_held"] = place  # removed when the process ends
    return Path(place.name)


def extraction(data: bytes) -> None:
    """A page's bytes, the first of which chooses the engine and the declared type."""
    from llm_core.data import extract

    engines, kinds = tuple(extract.ENGINES), ("text/html", "text/plain", "application/xhtml+xml; charset=x", None)
    choice = data[0] if data else 0
    found = extract.extract(
        data[1:], content_type=kinds[choice % 4], url="http://a.example/b", engine=engines[choice // 4 % len(engines)]
    )
    if found is not None and not isinstance(found.text, str):
        raise Wrong(f"the text is a {type(found.text).__name__}")


def warc(data: bytes) -> None:
    """A WARC file: nothing is raised, whatever it holds; faults are listed."""
    from llm_core.data.sources.archives import Archive

    path = folder() / "fuzz.warc"
    path.write_bytes(data)
    archive = Archive(path, max_bytes=100_000)
    for page in archive.pages():
        if len(page.body) > 100_000:
            raise Wrong("a body is larger than allowed")
        _ = (page.url, page.mime, page.date, page.languages, page.encodings(), page.header("ETag"))


def sitemap(data: bytes) -> None:
    """A sitemap, or the rules of a robots.txt."""
    from llm_core.data.web.robots import Robots
    from llm_core.data.web.sitemaps import read_sitemap

    if data[:1] == b"R":
        Robots.from_answer(200, data[1:], "groundup").verdict("http://a.example/b?c=d")
        return
    found = read_sitemap(data)
    if len(found.pages) + len(found.sitemaps) > 50_000:
        raise Wrong("more URLs than allowed")


@cache
def small_tokenizer() -> Any:
    from llm_core.data import bpe

    made = bpe.train([TEXT] * 20, 320)
    made.save(folder() / "tokenizer")
    return made


def tokenizer(data: bytes) -> None:
    """Text there and back, or, by the first byte, one of the tokenizer's files."""
    from llm_core.data.bpe import Tokenizer

    whole = small_tokenizer()
    files = {b"J": "tokenizer.json", b"R": "vocab.tiktoken", b"E": "encoding.json"}
    if data[:1] not in files:
        text = data.decode("utf-8", "surrogatepass") if data[:1] == b"S" else data.decode("utf-8", "replace")
        ids = whole.encode(text)
        back = whole.decode(ids)
        if back != text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"):
            raise Wrong(f"{text!r} came back as {back!r}")
        return
    place = folder() / "tokenizer"
    path = place / files[data[:1]]
    good = path.read_bytes()
    try:
        path.write_bytes(data[1:])
        found = Tokenizer.load(place) if data[:1] == b"J" else Tokenizer.load_tiktoken(place)
        found.decode(found.encode(TEXT))
    finally:
        path.write_bytes(good)


@cache
def _shards() -> Path:
    import numpy as np

    from llm_core.data import shards

    made = small_tokenizer()
    out = folder() / "shards"
    facts = shards.describe(made) | {"splits": {s: {"bytes": 9, "sources": {"a": [0, 2]}} for s in shards.SPLITS}}
    with artifacts.new_product(out, "shards", facts) as new:
        (new / "tokenizer").mkdir()
        made.save(new / "tokenizer")
        for split in shards.SPLITS:
            writer = shards.ShardWriter(new, split, "<u2")
            writer.extend(np.arange(20), np.array([12, 8]))
            writer.close()
            writer = shards.ShardWriter(new, f"dialogues-{split}", "<u2", extra=("mask",))
            writer.append([1, 2, 3], mask=[0, 1, 1])
            writer.close()
            (new / f"dialogues-{split}.kinds").write_bytes(b"\0")
    return out


def shards(data: bytes) -> None:
    """Whole shards with one file changed; an even first byte puts the manifest right again, as an attacker would."""
    from llm_core.data.shards import SPLITS, Shards

    product = _shards()
    names = sorted(p.relative_to(product).as_posix() for p in product.rglob("*") if p.is_file())
    first, which = (*data[:2], 0, 0)[:2]
    name = names[which % len(names)]
    path, manifest = product / name, product / artifacts.MANIFEST
    good, sealed = path.read_bytes(), manifest.read_bytes()
    try:
        path.write_bytes(_edited(good, data[2:]))
        if first % 2 == 0 and name != artifacts.MANIFEST:
            content = json.loads(sealed)
            content["files"][name] = {"bytes": path.stat().st_size, "sha256": artifacts.sha256(path)}
            manifest.write_bytes(artifacts.dump_json(content))
        found = Shards.open(product)
        for split in SPLITS:
            tokens, offsets, talk = found.tokens(split), found.offsets(split), found.dialogues(split)
            if len(tokens) and int(tokens.max()) >= found.tokenizer.vocab_size:
                raise Wrong("an id that the tokenizer has not")
            if offsets[-1] != len(tokens) or talk.offsets[-1] != len(talk.tokens) or len(talk.mask) != len(talk.tokens):
                raise Wrong("offsets that do not fit")
            found.text_bytes(split), found.sources(split)
    finally:
        path.write_bytes(good)
        manifest.write_bytes(sealed)


def _edited(good: bytes, edit: bytes) -> bytes:
    """Two bytes of place and one of length, then what stands there instead; without any, the file is emptied."""
    if len(edit) < 3:
        return edit
    place = int.from_bytes(edit[:2], "little") % (len(good) + 1)
    return good[:place] + edit[3:] + good[place + edit[2] :]


def manifest(data: bytes) -> None:
    """A product's manifest."""
    product = folder() / "product"
    if not product.is_dir():
        with artifacts.new_product(product, "thing") as new:
            (new / "file").write_bytes(b"0123456789")
    (product / artifacts.MANIFEST).write_bytes(data)
    found = artifacts.read_manifest(product, "thing")
    artifacts.verify(product)
    artifacts.digest(product)
    if any(Path(name).is_absolute() or ".." in Path(name).parts for name in found["files"]):
        raise Wrong("a file outside the product was taken for one of it")


def params(data: bytes) -> None:
    """params.yaml, or, after a first byte of "=", the text of one --set."""
    from tasks import params as parts

    if data[:1] == b"=":
        parts.check(parts.parse_assignments([data[1:].decode("utf-8", "replace")]), "--set")
        return
    path = folder() / "params.yaml"
    path.write_bytes(data)
    found = parts.read(path)
    parts.check(found, "params.yaml")
    parts.dump(parts.overlay(found, {"pretrain": {"steps": 3}}))

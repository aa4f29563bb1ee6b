"""What `benchmarks.fuzz` and tests/fuzz feed with broken input: everything that reads what others wrote.

A target takes bytes. Besides ending well it may raise what its docstring promises (`allowed`); anything else, also a
status of 500 or above, is a crash.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from llm_core import artifacts
from llm_core.contract import BadInput

CORPUS = Path(__file__).resolve().parents[1] / "tests" / "fuzz" / "corpus"
TEXT = "the quick brown fox jumps over the lazy dog; what is seven plus five? h\u00e9llo \u65e5\u672c\u8a9e 0123456789 "


class Wrong(AssertionError):
    """A target ended, but with a wrong result."""


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
def _tokenizer() -> Any:
    from llm_core.data import bpe

    made = bpe.train([TEXT] * 20, 320)
    made.save(folder() / "tokenizer")
    return made


def tokenizer(data: bytes) -> None:
    """Text there and back, or, by the first byte, one of the tokenizer's files."""
    from llm_core.data.bpe import Tokenizer

    whole = _tokenizer()
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

    made = _tokenizer()
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


class _Server:
    """The API's application in this process, with its lifespan running in an event loop of its own."""

    def __init__(self) -> None:
        import torch

        from apps import server
        from apps.serving.options import ServeOptions
        from apps.serving.served import Folder
        from llm_core.model.checkpoint import save_model
        from llm_core.model.config import ModelConfig
        from llm_core.model.transformer import Transformer

        torch.set_num_threads(1)
        torch.manual_seed(0)
        shape = {"layers": 1, "heads": 2, "width": 16, "context": 64, "tied": False}
        place = folder() / "model"
        place.mkdir()
        save_model(Transformer(ModelConfig.preset("qwen3", vocab_size=320, **shape)), place, _tokenizer())
        source, options = Folder(place), ServeOptions(port=0, max_tokens=4, watch_seconds=0, request_seconds=60)
        self.app = server.make_app(source, source.load(), options)
        self.loop = asyncio.new_event_loop()
        self._life = self.app.router.lifespan_context(self.app)
        self.loop.run_until_complete(self._life.__aenter__())

    def ask(self, method: str, path: str, headers: list[tuple[bytes, bytes]], body: bytes) -> tuple[int, bytes]:
        """(status, body) of one request."""
        return self.loop.run_until_complete(self._ask(method, path, headers, body))

    async def _ask(self, method: str, path: str, headers: list[tuple[bytes, bytes]], body: bytes) -> tuple[int, bytes]:
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http",
            "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "", "headers": headers,
            "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80), "state": {},
        }  # fmt: skip
        sent: list[Any] = []
        waiting: list[Any] = [{"type": "http.request", "body": body, "more_body": False}]
        never = asyncio.Event()

        async def receive() -> Any:
            if not waiting:
                await never.wait()
            return waiting.pop()

        async def send(message: Any) -> None:
            sent.append(message)

        await self.app(scope, receive, send)
        return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:])


@cache
def _server() -> _Server:
    return _Server()


def api(data: bytes) -> str:
    """A request: the first byte chooses path and method, the rest is the body."""
    paths = (
        "/v1/completions",
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/chat/completions",
        "/v1/models",
        "/v1/x",
    )
    choice = data[0] if data else 0
    path = paths[choice % len(paths)]
    method = "POST" if choice // len(paths) % 8 else "PATCH"
    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    status, body = _server().ask(method, path, headers, data[1:])
    if status >= 500:
        raise Wrong(f"status {status}: {body[:200]!r}")
    if status >= 400 and set(json.loads(body)["error"]) != {"message", "type", "param", "code"}:
        raise Wrong(f"a refusal in another shape: {body[:200]!r}")
    return f"status {status}"


def _targets() -> dict[str, Target]:
    from llm_core.data.extract import Unreadable
    from llm_core.data.web.sitemaps import BadSitemap

    words = {
        "extraction": (
            b"<html>",
            b"<body>",
            b"<div>",
            b"<p>",
            b"<a href='x'>",
            b"</table>",
            b"<script>",
            b"<!--",
            b"]]>",
            b"<![CDATA[",
            b"&#0;",
            b"&#xD800;",
            b"<meta charset=utf-16>",
            b"\xff\xfe",
            b"\x1f\x8b",
            b"<title>",
            b"<article>",
            b"\xed\xa0\x80",
            b"\0",
        ),
        "warc": (
            b"WARC/1.0\r\n",
            b"WARC-Type: response\r\n",
            b"Content-Length: 0\r\n",
            b"\r\n\r\n",
            b"HTTP/1.1 200 OK\r\n",
            b"WARC-Type: metadata\r\n",
            b"Content-Encoding: gzip\r\n",
            b"Transfer-Encoding: chunked\r\n",
            b"\x1f\x8b\x08",
            b"Content-Type: application/http\r\n",
            b"languages-cld2: {}",
            b"-1",
            b"99999999999999999999",
        ),
        "sitemap": (
            b"<urlset>",
            b"<url><loc>",
            b"</loc></url>",
            b"<!DOCTYPE a [<!ENTITY b 'c'>]>",
            b"&b;",
            b"<sitemapindex>",
            b"R",
            b"User-agent: *\n",
            b"Disallow: ",
            b"Allow: /*$\n",
            b"Crawl-delay: 1e999\n",
            b"\x1f\x8b",
        ),
        "tokenizer": (
            b"J",
            b"R",
            b"E",
            b"S",
            b"\xed\xa0\x80",
            b"<|endoftext|>",
            b"\xc2\xa0",
            b" " * 40,
            b'"merges"',
            b"null",
        ),
        "shards": (b"\0\0", b"\xff\xff", b"null", b"{}", b"-1", b"[]", b"\xff\xff\xff\xff\xff\xff\xff\xff"),
        "manifest": (
            b'"files"',
            b'"kind"',
            b'"thing"',
            b'"../../etc/passwd"',
            b'"/etc/passwd"',
            b"null",
            b"[]",
            b"{}",
            b"1e999",
            b'"sha256"',
            b'"bytes"',
            b"[" * 200,
            b"\\u0000",
        ),
        "params": (
            b"acquire:",
            b"pretrain:",
            b"\n  ",
            b"&a [*a]",
            b"*a",
            b"!!python/object/apply:os.system ",
            b"2020-99-99",
            b"- ",
            b"{",
            b"[" * 100,
            b"steps: 1",
            b"!!binary x",
            b"<<: ",
            b"=pretrain.steps=",
            b".inf",
            b"0b_",
            b"1:99:99",
        ),
        "api": (
            b'"prompt"',
            b'"messages"',
            b'"content"',
            b'"role"',
            b'"user"',
            b'"max_tokens": 1',
            b'"stream": true',
            b"NaN",
            b"1e999",
            b'"stop"',
            b'"logprobs": 5',
            b'"n": 2',
            b'"temperature"',
            b"null",
            b"[]",
            b"\\ud800",
            b'"seed"',
            b"-1",
            b'"echo": true',
            b'"logit_bias": {"1": 1}',
            b'"response_format"',
            b'"tools"',
            b'"stream_options"',
        ),
    }
    allowed: dict[str, tuple[type[Exception], ...]] = {
        "extraction": (Unreadable,), "warc": (), "sitemap": (BadSitemap,), "tokenizer": (BadInput, UnicodeDecodeError),
        "shards": (BadInput,), "manifest": (artifacts.BrokenProduct,), "params": (BadInput,), "api": (),
    }  # fmt: skip
    runs = (extraction, warc, sitemap, tokenizer, shards, manifest, params, api)
    return {run.__name__: Target(run.__name__, run, allowed[run.__name__], words[run.__name__]) for run in runs}


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

"""Articles from a raw Wikipedia dump: <language>wiki-<date>-pages-articles-multistream.xml.bz2.

The dump is one XML document in many bz2 streams; it is read as a stream, one page in memory at a time, and pages of the
article namespace that redirect nowhere are kept. Wiki text becomes plain text by mwparserfromhell after what reads
badly is taken out (files, categories, references, tables), as the script that made the hub's plain version does
(wikimedia/wikipedia, wikipedia.py). It runs in as many processes as there are cores: a few MB/s each.
"""

from __future__ import annotations

import bz2
import importlib.util
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from lxml import etree

from llm_core.contract import BadInput
from llm_core.data.packed import Bounded
from llm_core.data.sources.download import DownloadFailed, Patience, client, download
from llm_core.data.sources.reach import reachable
from llm_core.data.sources.rows import Row
from llm_core.parallel import batched, map_ordered

MAX_PAGE_BYTES = 256_000_000
"""Bytes of one page of a dump after decompression; the largest that stand there have a few million."""
BATCH_PAGES = 64
_CANONICAL = ("File", "Image", "Media", "Category")
_UNSEEN_TAGS = frozenset({"ref", "table", "gallery", "math", "timeline", "score", "syntaxhighlight", "imagemap"})
_MAGIC_WORDS = re.compile(r"__[A-Z]+__")
_BLANK_LINES = re.compile(r"\n\s*\n\s*")
_FILE_KEYS, _CATEGORY_KEY = ("6", "-2"), "14"


@dataclass(frozen=True, slots=True)
class Article:
    """A page as it stands in the dump; `number` counts the dump's pages of every kind from 1.

    `passed` are the reasons of the pages between the article before it and itself.
    """

    number: int
    title: str
    wikitext: str
    unseen: tuple[str, ...] = _CANONICAL
    passed: tuple[str, ...] = ()


class DumpRows:
    """Raw documents of a dump: a `Resumable`. A rerun reads the dump again, but does not parse again what it has."""

    def __init__(self, source: str, path: Path, language: str, workers: int = 0) -> None:
        """Raises `BadInput` if the dump or the parser is missing. `workers` = 0 takes all cores."""
        if importlib.util.find_spec("mwparserfromhell") is None:
            raise BadInput(f"acquire.sources: {source!r}: a dump needs the extra: pip install 'groundup[wikipedia]'")
        if not path.is_file():
            raise BadInput(f"acquire.sources: {source!r}: dump: no file at {path}")
        self._source, self._path, self._language, self._workers = source, path, language, workers
        self.skipped: Counter[str] = Counter()
        self.unreadable: list[dict[str, str | float]] = []
        self.facts: dict[str, Any] = {"dump": path.name, "language": language}
        self._number = 0

    @property
    def key(self) -> str:
        """The dump by name, size and date."""
        known = self._path.stat()
        return json.dumps([str(self._path), known.st_size, known.st_mtime_ns, self._language])

    def state(self) -> Any:
        """The number of the dump's page that came last."""
        return {"page": self._number}

    def rows(self, state: Any) -> Iterator[Row]:
        """Articles behind `state`. Raises `BadInput` naming the page after which the dump cannot be read."""
        self._number = state["page"] if state else 0
        dump = Dump(self._path, self._language, behind=self._number)
        for batch in map_ordered(plain_texts, batched(dump.articles(), BATCH_PAGES), workers=self._workers):
            for article, text in batch:
                self._number = article.number
                self.skipped.update(article.passed)
                if text:
                    url = dump.base + quote(article.title.replace(" ", "_"), safe="/:()!,*'")
                    yield {"url": url, "title": article.title, "text": text, "content_type": "text/plain"}
                else:
                    self.skipped["no text"] += 1
        self.skipped.update(dump.passed)
        if dump.fault is not None:
            raise BadInput(f"acquire.sources: {self._source!r}: {self._path}, after page {dump.pages}: {dump.fault}")


class Dump:
    """The pages of a dump, streamed. `base`, `pages`, `passed` and `fault` are known when `articles` has run."""

    def __init__(self, path: Path, language: str, behind: int = 0) -> None:
        self._path, self._behind = path, behind
        self.passed: list[str] = []
        self.base = f"https://{language}.wikipedia.org/wiki/"
        self.pages = 0
        self.fault: str | None = None

    def articles(self) -> Iterator[Article]:
        """Pages of the article namespace, without redirects; the others are counted."""
        unseen = list(_CANONICAL)
        try:
            with bz2.open(self._path) as packed:
                file = Bounded(packed, MAX_PAGE_BYTES)
                tags = ("{*}base", "{*}namespace", "{*}page")
                for _, element in etree.iterparse(file, tag=tags, resolve_entities=False, huge_tree=True):
                    kind = etree.QName(element).localname
                    if kind == "base" and element.text:
                        self.base = element.text.rpartition("/")[0] + "/"
                    elif kind == "namespace" and element.get("key") in (*_FILE_KEYS, _CATEGORY_KEY):
                        unseen += [element.text] if element.text else []
                    elif kind == "page":
                        self.pages += 1
                        article = self._article(element, tuple(dict.fromkeys(unseen)))
                        if article is not None:
                            yield article
                        _forget(element)
                    file.restart()
        except (OSError, EOFError, etree.XMLSyntaxError) as error:
            self.fault = f"the dump cannot be read further ({error})"  # told when all before it is written

    def _article(self, page: Any, unseen: tuple[str, ...]) -> Article | None:
        if self.pages <= self._behind:
            return None
        if page.findtext("{*}ns") != "0":
            self.passed.append("other namespace")
        elif page.find("{*}redirect") is not None:
            self.passed.append("redirect")
        else:
            text, passed = page.findtext("{*}revision/{*}text") or "", tuple(self.passed)
            self.passed.clear()
            return Article(self.pages, page.findtext("{*}title") or "", text, unseen, passed)
        return None


def _forget(element: Any) -> None:
    """Free a page and what stands before it: memory stays flat however long the dump is."""
    element.clear()
    while element.getprevious() is not None:
        del element.getparent()[0]


def plain_texts(articles: Sequence[Article]) -> list[tuple[Article, str]]:
    """Each article, its wiki text no longer needed, with its plain text, which is empty where nothing is left."""
    return [(replace(article, wikitext=""), plain(article.wikitext, article.unseen)) for article in articles]


def plain(wikitext: str, unseen: Sequence[str] = _CANONICAL) -> str:
    """Wiki text as plain text, paragraphs apart by an empty line. `unseen`: namespaces whose links are taken out."""
    import mwparserfromhell

    code = mwparserfromhell.parse(wikitext, skip_style_tags=False)
    prefixes = tuple(f"{name.lower()}:" for name in unseen)
    nodes: list[Any] = [
        link for link in code.ifilter_wikilinks() if str(link.title).strip().lower().startswith(prefixes)
    ]
    nodes += [tag for tag in code.ifilter_tags() if str(tag.tag).strip().lower() in _UNSEEN_TAGS]
    for node in nodes:
        try:
            code.remove(node)
        except ValueError:
            continue  # it stood inside one that is gone already
    text = _MAGIC_WORDS.sub("", code.strip_code(normalize=True, collapse=True))
    return _BLANK_LINES.sub("\n\n", "\n".join(line.strip() for line in text.splitlines())).strip()


def fetched(source: str, dump: str, folder: Path, tell: Callable[[int], None]) -> Path:
    """The dump as a local file, downloaded into `folder` if it is a URL; `tell` gets the bytes so far.

    Raises `BadInput` at once if its host cannot be reached, or if the host refuses.
    """
    if not dump.startswith(("http://", "https://")):
        return Path(dump)
    target = folder / dump.rpartition("/")[2]
    if not target.exists():
        if not reachable(dump):
            raise BadInput(f"acquire.sources: {source!r}: {dump} cannot be reached")
        folder.mkdir(parents=True, exist_ok=True)
        with client(home=dump) as session:
            try:
                download(session, dump, target, patience=Patience(), tell=tell)
            except DownloadFailed as error:
                raise BadInput(f"acquire.sources: {source!r}: {error}") from error
    return target

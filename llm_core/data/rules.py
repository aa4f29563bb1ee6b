"""Per-site extraction rules, found by a page's host: rules/HOST.py or rules/HOST.yaml.

A Python rule has a function `extract(soup)`. It gets BeautifulSoup's tree of the page and returns the text, or a
mapping with `text` and any of `title`, `date` and `licence`, or None to leave the page to the engine:

    def extract(soup):
        return {"text": soup.select_one("main").get_text("\\n", strip=True), "title": soup.h1.get_text()}

A YAML rule says it in CSS selectors, one or a list for each field:

    content: [article.post]        what is kept, in the order of the page
    drop: [nav, .advertisement]    what is removed from it; may be left out, as may the next two
    title: h1
    date: time                     its `datetime` or `content` if it has one, else its text

A rule for example.org serves its subdomains too, unless they have their own.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import soupsieve
import yaml
from bs4 import BeautifulSoup

from llm_core.contract import BadInput
from llm_core.data.extract import Rule, Ruled, Unreadable, visible_text

FIELDS = ("content", "drop", "title", "date")
_NAME = re.compile(r"[\w.-]+")


def rule_for(url: str, folder: Path, name: str | None = None) -> Rule | None:
    """The rule named `name`, else that of the URL's host or of the nearest domain above it; None if there is none.

    Raises `BadInput` if a rule that is named does not exist, or if a rule cannot be used.
    """
    if name is not None:
        rule = _rule(name, folder) if _NAME.fullmatch(name) else None
        if rule is None:
            raise BadInput(f"clean.sources.rule: there is no rule {name!r} in {folder}")
        return rule
    try:
        host = urlsplit(url).hostname or ""
    except ValueError:
        return None
    return _rule_of_host(host.removeprefix("www."), folder)


@lru_cache(4096)
def _rule_of_host(host: str, folder: Path) -> Rule | None:
    labels = host.split(".")
    for first in range(max(len(labels) - 1, 1)):
        name = ".".join(labels[first:])
        if _NAME.fullmatch(name) and (rule := _rule(name, folder)):
            return rule
    return None


@lru_cache(256)
def _rule(name: str, folder: Path) -> Rule | None:
    python, selectors = folder / f"{name}.py", folder / f"{name}.yaml"
    if python.is_file() and selectors.is_file():
        raise BadInput(f"{python} and {selectors} are rules for the same pages: keep one of them")
    if python.is_file():
        return PythonRule(python, _function(python))
    return SelectorRule(selectors, _selectors(selectors)) if selectors.is_file() else None


@dataclass(frozen=True)
class PythonRule:
    """A rule that is a function. What goes wrong in it is the page's reason: "rule_error"."""

    path: Path
    function: Callable[[BeautifulSoup], Any]

    def __call__(self, soup: BeautifulSoup) -> Ruled:
        try:
            return self.strict(soup)
        except Exception as error:  # a page that a rule did not expect costs that page, not the run
            raise Unreadable("rule_error") from error

    def strict(self, soup: BeautifulSoup) -> Ruled:
        """The same, with whatever the function raises. Raises `BadInput` for a result that is no text."""
        found = self.function(soup)
        if found is None or isinstance(found, str):
            return Ruled(found)
        if not isinstance(found, Mapping) or (unknown := set(found) - {"text", "title", "date", "licence"}):
            what = f"the unknown field {sorted(map(str, unknown))[0]}" if isinstance(found, Mapping) else repr(found)
            raise BadInput(f"{self.path}: extract(soup) must return text, a mapping with text, or None, not {what}")
        return Ruled(found.get("text"), found.get("title"), found.get("date"), found.get("licence"))


@dataclass(frozen=True)
class SelectorRule:
    """A rule of CSS selectors, compiled, by field."""

    path: Path
    selectors: Mapping[str, soupsieve.SoupSieve]

    def __call__(self, soup: BeautifulSoup) -> Ruled:
        """What the selectors find. An element inside another that was found counts once."""
        title, date = self._first(soup, "title"), self._first(soup, "date")
        if "drop" in self.selectors:
            for element in self.selectors["drop"].select(soup):
                element.decompose()
        parts, taken = [], set()
        for element in self.selectors["content"].select(soup):
            if not any(id(parent) in taken for parent in element.parents):
                taken.add(id(element))
                parts.append(visible_text(f"<body>{element}</body>").strip())
        return Ruled("\n\n".join(filter(None, parts)) or None, title, date)

    def _first(self, soup: BeautifulSoup, field: str) -> str | None:
        element = self.selectors[field].select_one(soup) if field in self.selectors else None
        if element is None:
            return None
        attribute = element.get("datetime") or element.get("content")
        return str(attribute or element.get_text(" ", strip=True)).strip() or None

    strict = __call__


def _function(path: Path) -> Callable[[BeautifulSoup], Any]:
    spec = importlib.util.spec_from_file_location(f"rule_{path.stem.replace('.', '_')}", path)
    if spec is None or spec.loader is None:
        raise BadInput(f"{path}: cannot be loaded as a rule")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise BadInput(f"{path}: cannot be loaded as a rule: {type(error).__name__}: {error}") from error
    function = getattr(module, "extract", None)
    if not callable(function):
        raise BadInput(f"{path}: a rule needs a function extract(soup)")
    return function  # type: ignore[no-any-return]


def _selectors(path: Path) -> dict[str, soupsieve.SoupSieve]:
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(found, dict):
        raise BadInput(f"{path}: a rule is a mapping of {', '.join(FIELDS)} to CSS selectors")
    if unknown := sorted(set(map(str, found)) - set(FIELDS)):
        raise BadInput(f"{path}: unknown field {unknown[0]!r}; a rule has {', '.join(FIELDS)}")
    if not found.get("content"):
        raise BadInput(f"{path}: content: a rule needs a selector of what is kept")
    return {field: _compiled(path, field, value) for field, value in found.items() if value}


def _compiled(path: Path, field: str, value: Any) -> soupsieve.SoupSieve:
    texts = value if isinstance(value, list) else [value]
    if not all(isinstance(text, str) and text.strip() for text in texts):
        raise BadInput(f"{path}: {field}: must be a CSS selector or a list of them")
    try:
        return soupsieve.compile(", ".join(texts))
    except soupsieve.SelectorSyntaxError as error:
        raise BadInput(f"{path}: {field}: is no CSS selector: {str(error).splitlines()[0]}") from error

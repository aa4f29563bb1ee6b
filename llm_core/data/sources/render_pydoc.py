"""Render the standard library's documentation: HTML pages by pydoc, and question/answer pairs from the docstrings.

    python -s -P -S render_pydoc.py FOLDER OPTIONS.json

This file is a program of its own and imports nothing but the standard library: it runs in a child whose environment
is PYTHONHASHSEED=0 alone. That matters, because plain pydoc prints what it finds in the process: os.environ as a
default value, sys.executable, memory addresses, the machine's folders. Here module data, file names and authors are
left out, and a default value that is no plain literal is shown as "...". The same Python gives the same bytes.
"""

from __future__ import annotations

import importlib
import inspect
import json
import linecache
import os
import pkgutil
import pydoc
import re
import sys
import warnings
import zlib
from collections.abc import Iterator
from functools import lru_cache
from types import ModuleType
from typing import Any

SIDE_EFFECTS = {"antigravity", "this", "idlelib", "turtledemo", "test"}
"""Modules that act when imported."""
LEFT_OUT = {"encodings", "tkinter", "turtle", "lib2to3", "distutils", "pydoc_data", "posix", "nt", "msilib"}
"""Modules without text of their own, absent from many installations, or the same as another."""
HIDDEN_SECTIONS = ("Data", "Author", "Credits")
ADDRESS = re.compile(r"\bat 0x[0-9A-Fa-f]+")
CALL_LINE = re.compile(r"[\w.]+\([^)]*\)(\s*->.*)?$")
FIRST_SENTENCE = re.compile(r".{20,}?[.!?](?=\s)")
LONGEST_ANSWER = 200


class Masked:
    """Stands for a value that is not shown."""

    def __repr__(self) -> str:
        return "..."


def is_literal(value: Any) -> bool:
    """Whether a value looks the same in every process: plain numbers, text that is no path, containers of such."""
    if type(value) in (bool, int, float, complex, type(None), type(...)):
        return True
    if type(value) in (str, bytes):
        return not os.path.isabs(value) or len(value) == 1
    if type(value) in (tuple, list):
        return all(is_literal(item) for item in value)
    return type(value) is dict and not value


_signature = inspect.signature


def masked_signature(function: Any, **options: Any) -> inspect.Signature:
    """`inspect.signature`, with every default that is no literal replaced."""
    signature = _signature(function, **options)
    parameters = [
        p if p.default is p.empty or is_literal(p.default) else p.replace(default=Masked())
        for p in signature.parameters.values()
    ]
    return signature.replace(parameters=parameters)


def comments_above(value: Any) -> str | None:
    """The comment above a function, which pydoc shows where there is no docstring.

    `inspect.getcomments` parses the whole source for each question, and would take more time than all the rest.
    """
    code = getattr(value, "__code__", None)
    if code is None:
        return None
    lines, above = linecache.getlines(code.co_filename), []
    for line in reversed(lines[: code.co_firstlineno - 1]):
        if not line.lstrip().startswith("#"):
            break
        above.append(line.strip().lstrip("#").rstrip("#"))
    return inspect.cleandoc("\n".join(["", *reversed(above)])) if above else None


class Renderer(pydoc.HTMLDoc):
    """pydoc's own HTML without anything that belongs to this machine or process."""

    preformat = staticmethod(lru_cache(100_000)(pydoc.html.preformat))  # called for every word of every page

    def filelink(self, *_: Any) -> str:
        return ""

    def getdocloc(self, *_: Any) -> None:
        return None

    def bigsection(self, title: str, *args: Any) -> str:
        return "" if title in HIDDEN_SECTIONS else super().bigsection(title, *args)

    def docother(self, object: Any, name: str | None = None, mod: str | None = None, *_: Any) -> str:
        return super().docother(object if is_literal(object) else Masked(), name, mod)


def module_names(chosen: list[str]) -> Iterator[str]:
    """Public modules and public submodules of the standard library, sorted."""
    for name in sorted(chosen or sys.stdlib_module_names):
        if not name.startswith("_") and name not in SIDE_EFFECTS | LEFT_OUT:
            yield name
            yield from submodules(name)


def submodules(package: str) -> Iterator[str]:
    """Public submodules of a package, at every depth; none if it cannot be imported."""
    module = load(package)
    for entry in sorted(pkgutil.iter_modules(getattr(module, "__path__", ())), key=lambda entry: entry.name):
        if not entry.name.startswith("_") and entry.name not in ("test", "tests", "idle_test"):
            yield f"{package}.{entry.name}"
            if entry.ispkg:
                yield from submodules(f"{package}.{entry.name}")


def load(name: str) -> ModuleType | None:
    """Import a module; None where it is not for this machine."""
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit):
        return None


def question(name: str, kind: str) -> str:
    """One of a few phrasings, chosen by the name alone."""
    phrasings = {
        "module": ("What is the module {} for?", "What does the module {} provide?"),
        "class": ("What is {}?", "What is the class {} for?"),
        "routine": ("What does {} do?", "What is {} for?"),
    }[kind]
    return phrasings[zlib.crc32(name.encode()) % len(phrasings)].format(name)


def answer(doc: str | None) -> str | None:
    """The first sentence or short paragraph of a docstring; None if it does not make an answer."""
    paragraphs = inspect.cleandoc(doc or "").split("\n\n")
    if paragraphs and CALL_LINE.match(paragraphs[0].replace("\n", " ").strip()):
        paragraphs = paragraphs[1:]
    lines = paragraphs[0].strip().split("\n") if paragraphs else []
    if lines and CALL_LINE.match(lines[0].strip()):
        lines = lines[1:]
    text = " ".join(" ".join(lines).split())
    if len(text) > LONGEST_ANSWER:
        sentence = FIRST_SENTENCE.match(text, 0, LONGEST_ANSWER)
        text = sentence.group() if sentence else ""
    return text if len(text.split()) >= 3 and text[0].isalpha() and not ADDRESS.search(text) else None


def things(module: ModuleType) -> Iterator[tuple[str, str, str | None]]:
    """(name, kind, own docstring) of a module, its public functions and classes, and their public methods."""
    yield module.__name__, "module", module.__doc__
    exported = getattr(module, "__all__", None)
    for name, value in inspect.getmembers(module):
        if name.startswith("_") or not (inspect.isclass(value) or inspect.isroutine(value)):
            continue
        if name not in exported if exported is not None else inspect.getmodule(value) not in (module, None):
            continue
        yield f"{module.__name__}.{name}", "class" if inspect.isclass(value) else "routine", own_doc(value)
        if inspect.isclass(value):
            for attribute, member in sorted(vars(value).items()):
                if not attribute.startswith("_") and (inspect.isroutine(member) or isinstance(member, property)):
                    yield f"{module.__name__}.{name}.{attribute}", "routine", own_doc(member)


def own_doc(value: Any) -> str | None:
    """The docstring written on the thing itself, as text."""
    doc = getattr(value, "__doc__", None)
    return doc if isinstance(doc, str) else None


def page_of_topic(renderer: Renderer, topic: str, text: str) -> str:
    """A language topic of pydoc_data as a page."""
    heading = renderer.heading(f'<strong class="title">{renderer.escape(topic)}</strong>')
    return renderer.page(renderer.escape(topic), f"{heading}<pre>{renderer.markup(text)}</pre>")


def write(path: str, html: str) -> None:
    """Write a page, memory addresses masked."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8", errors="replace", newline="\n") as handle:
        handle.write(ADDRESS.sub("at 0x...", html))


def render(folder: str, modules: list[str], topics: bool) -> None:
    """Fill `folder` with library/*.html, topics/*.html and dialogues.jsonl."""
    renderer = Renderer()
    seen: set[str] = set()
    with open(os.path.join(folder, "dialogues.jsonl"), "w", encoding="utf-8", newline="\n") as dialogues:
        for name in module_names(modules):
            module = load(name)
            if module is None or module.__name__ != name:
                continue
            html = renderer.page(renderer.escape(name), renderer.document(module, name))
            write(os.path.join(folder, "library", f"{name}.html"), html)
            for thing, kind, doc in things(module):
                text = answer(doc)
                if text and text.lower() not in seen:
                    seen.add(text.lower())
                    pair = {"page": f"library/{name}.html", "question": question(thing, kind), "answer": text}
                    dialogues.write(json.dumps(pair) + "\n")
    if topics:
        from pydoc_data.topics import topics as texts

        for topic, text in sorted(texts.items()):
            write(os.path.join(folder, "topics", f"{topic}.html"), page_of_topic(renderer, topic, text))


def main() -> None:
    """Read the options and render."""
    folder, options_file = sys.argv[1:]
    with open(options_file, encoding="utf-8") as handle:
        options = json.load(handle)
    warnings.simplefilter("ignore")
    inspect.signature = masked_signature  # type: ignore[assignment]
    inspect.getcomments = comments_above  # type: ignore[assignment]
    render(folder, options["modules"], options["topics"])


if __name__ == "__main__":
    main()

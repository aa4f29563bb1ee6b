"""Rule for pages that pydoc made. A rule is a function `extract(soup)` that returns a page's text, or None.

pydoc repeats a class's inherited members on every page that has a subclass of it: two thirds of its lines. This rule
keeps what is defined here and has something to say: no inherited members, method resolution orders, private names, or
special methods with the standard sentence.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from bs4 import BeautifulSoup, NavigableString, Tag

DUNDERS_KEPT = {"__init__", "__new__", "__call__", "__enter__", "__exit__", "__iter__"}
STANDARD_SENTENCES = (
    "Initialize self.",
    "Create and return a new object.",
    "list of weak references",
    "dictionary for instance variables",
    "Return self==value",
    "Implement iter(self)",
)
STANDARD_LENGTH = 60
"""Characters: the sentences that Python gives to special methods are shorter."""
_SPACES = re.compile(r"[ \t]+\n")
_BLANK_LINES = re.compile(r"\n{3,}")


def extract(soup: BeautifulSoup) -> str | None:
    """The page's paragraphs, separated by blank lines."""
    title = soup.find("strong", class_="title")
    if soup.body is None or title is None:
        return None
    blocks = [f"{title.get_text()}"]
    for child in soup.body.find_all(["p", "pre", "table"], recursive=False):
        if child.name == "table":
            blocks.extend(section(child))
        elif child.name == "pre":
            blocks.append(text_of(child))
        else:
            blocks.extend(text_of(code) for code in child.find_all("span", class_="code", recursive=False))
            for table in child.find_all("table", class_="section", recursive=False):
                blocks.extend(section(table))
    return "\n\n".join(block for block in blocks if block)


def section(table: Tag) -> Iterator[str]:
    """The paragraphs of a section: a class, or a group of classes or functions."""
    heading = table.find("td", class_="section-title")
    content = table.find("td", class_="singlecolumn")
    if heading is None or content is None or table.find("tr", class_="pkg-content-decor"):
        return
    if table.find("tr").get("class", [""])[1:2] == ["title-decor"]:
        name = text_of(heading)
        if name.removeprefix("class ").startswith("_"):
            return
        prelude = table.find("td", class_="title-decor", colspan="2")
        yield f"{name}\n{text_of(prelude) if prelude else ''}".strip()
    yield from members(content)


def members(content: Tag) -> Iterator[str]:
    """Functions, or the members that a class defines itself."""
    inherited = False
    for child in content.children:
        if isinstance(child, NavigableString):
            if child.strip():
                inherited = inherited if child.strip() == ":" else "inherited from" in child
        elif child.name == "table":
            yield from section(child)
        elif child.name == "p":
            for table in child.find_all("table", class_="section", recursive=False):
                yield from section(table)
        elif child.name == "dl" and not inherited:
            yield from member(child)


def member(entry: Tag) -> Iterator[str]:
    """A signature, or an attribute that has a docstring, with that docstring."""
    name, doc = entry.find("strong"), entry.find("span", class_="code")
    if name is None:
        return
    text, label = text_of(doc) if doc else "", name.get_text()
    if is_boilerplate(label, text):
        return
    signature = entry.find("dt")
    origin = signature.find("span", class_="grey") if signature else None
    if origin is not None:
        origin.decompose()
    title = text_of(signature) if signature else label
    if text or "(" in title:
        yield f"{title}\n{text}".strip()


def is_boilerplate(name: str, doc: str) -> bool:
    """Whether a member is private, or a special method that says no more than every other one of its name."""
    if doc.startswith(STANDARD_SENTENCES):
        return True
    special = name.startswith("__") and name.endswith("__")
    return name.startswith("_") and not (special and (name in DUNDERS_KEPT or len(doc) > STANDARD_LENGTH))


def text_of(tag: Tag) -> str:
    """Text with plain spaces, no space at the ends of lines and no more than one blank line in a row."""
    text = _SPACES.sub("\n", tag.get_text().replace("\xa0", " ") + "\n")
    return _BLANK_LINES.sub("\n\n", text).strip()

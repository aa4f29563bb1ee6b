"""A site's own rule: found by host, in Python or CSS selectors, and refused with its file and field if it is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm_core.contract import BadInput
from llm_core.data.extract import Unreadable, extract, main_text, read
from llm_core.data.rules import rule_for

PAGE = b"""<!DOCTYPE html><html><head><title>Head</title></head><body><nav>Menu of the site</nav><main class=post>
<h1>A heading of a certain length</h1><div class=ad>Buy this now</div><p>First <b>bold</b> paragraph.</p>
<p>Second one.</p>
<section><p>Inside a section.</p></section></main><time datetime="2021-02-03">yesterday</time></body></html>"""


def write(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text)


def test_a_rule_is_found_by_host_and_by_the_domain_above(tmp_path: Path, root: Path) -> None:
    write(tmp_path, "example.org.py", "def extract(soup):\n    return soup.h1.get_text()\n")
    write(tmp_path, "docs.example.org.py", "def extract(soup):\n    return 'a page of the documentation'\n")
    rule = rule_for("https://www.example.org/a", tmp_path)
    assert extract(PAGE, rule=rule).text == "A heading of a certain length"
    assert rule_for("https://en.example.org/x", tmp_path) is rule
    assert rule_for("https://docs.example.org/x", tmp_path) is not rule
    assert rule_for("https://other.org/", tmp_path) is None
    assert rule_for("https://org/", tmp_path) is None
    assert rule_for("http://[broken", tmp_path) is None
    assert rule_for("https://other.org/", tmp_path, "example.org") is rule
    assert rule_for("http://pydoc.localhost/library/x.html", root / "rules") is not None
    with pytest.raises(BadInput, match="no rule 'missing'"):
        rule_for("", tmp_path, "missing")
    with pytest.raises(BadInput, match="no rule"):
        rule_for("", tmp_path, "../example.org")


def test_a_rule_in_python_may_know_better_than_the_head(tmp_path: Path) -> None:
    write(
        tmp_path, "a.org.py",
        "def extract(soup):\n"
        "    return {'text': soup.main.get_text(' ', strip=True), 'title': 'T', 'date': None, 'licence': 'CC0'}\n",
    )  # fmt: skip
    document = extract(PAGE, rule=rule_for("http://a.org/", tmp_path))
    assert (document.title, document.date, document.licence) == ("T", "2021-02-03", "CC0")
    assert "Buy this now" in document.text


def test_the_engine_takes_over_where_a_rule_finds_too_little(tmp_path: Path) -> None:
    write(tmp_path, "a.org.py", "def extract(soup):\n    return soup.b.get_text()\n")
    page, rule = read(PAGE, None), rule_for("http://a.org/", tmp_path)
    assert main_text(page, rule=rule, min_rule_characters=4).text == "bold"
    found = main_text(page, engine="text", rule=rule, min_rule_characters=5)
    assert found.by == "text"
    assert "Menu of the site" in found.text
    assert main_text(page, rule=lambda soup: rule_for("http://a.org/", tmp_path)(soup)).by == "trafilatura"


def test_selectors(tmp_path: Path) -> None:
    write(tmp_path, "a.org.yaml", "content: [main, main section]\ndrop: .ad\ntitle: h1\ndate: time\n")
    page = read(PAGE, None)
    found = main_text(page, rule=rule_for("http://a.org/", tmp_path))
    assert found.by == "rule"
    assert "First bold paragraph." in found.text, "inline elements do not part a sentence"
    assert "Buy" not in found.text
    assert "Menu" not in found.text
    assert found.text.count("Inside a section.") == 1, "an element inside another counts once"
    assert found.text.index("First") < found.text.index("Second") < found.text.index("Inside")
    assert (found.metadata.title, found.metadata.date) == ("A heading of a certain length", "2021-02-03")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("content: 'p['", r"a\.org\.yaml: content: is no CSS selector"),
        ("content: p\ndrop: [1]", r"a\.org\.yaml: drop: must be a CSS selector"),
        ("content: p\nbody: main", r"a\.org\.yaml: unknown field 'body'"),
        ("title: h1", r"a\.org\.yaml: content: a rule needs"),
        ("- p", r"a\.org\.yaml: a rule is a mapping"),
        ("content: [", r"a\.org\.yaml: is no YAML"),
    ],
)
def test_wrong_selectors_are_named(tmp_path: Path, text: str, message: str) -> None:
    write(tmp_path, "a.org.yaml", text)
    with pytest.raises(BadInput, match=message):
        rule_for("http://a.org/", tmp_path)


def test_wrong_python_is_named(tmp_path: Path) -> None:
    write(tmp_path, "none.org.py", "x = 1\n")
    with pytest.raises(BadInput, match=r"none\.org\.py: a rule needs a function extract"):
        rule_for("http://none.org/", tmp_path)
    write(tmp_path, "syntax.org.py", "def extract(soup)\n")
    with pytest.raises(BadInput, match=r"syntax\.org\.py: cannot be loaded as a rule: SyntaxError"):
        rule_for("http://syntax.org/", tmp_path)
    write(tmp_path, "two.org.py", "def extract(soup):\n    return None\n")
    write(tmp_path, "two.org.yaml", "content: p\n")
    with pytest.raises(BadInput, match="are rules for the same pages"):
        rule_for("http://two.org/", tmp_path)


@pytest.mark.parametrize("body", ["return soup.table.get_text()", "return 3", "return {'text': 'x', 'body': 'y'}"])
def test_a_page_that_a_rule_did_not_expect_costs_that_page(tmp_path: Path, body: str) -> None:
    write(tmp_path, "a.org.py", f"def extract(soup):\n    {body}\n")
    with pytest.raises(Unreadable, match="rule_error"):
        extract(PAGE, rule=rule_for("http://a.org/", tmp_path))

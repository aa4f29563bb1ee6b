"""A page tried out shows what `clean` would take, and every engine beside it; a rule's faults are not hidden."""

from __future__ import annotations

from pathlib import Path

import pytest

from llm_core.contract import BadInput
from llm_core.data.extract import ENGINES
from llm_core.data.tryout import try_page

BODY = (
    "<nav>Menu</nav><main><h1>Heading</h1>" + "<p>A paragraph that says something at some length. </p>" * 8 + "</main>"
)
PAGE = f"<html lang=en><head><title>Head</title></head><body>{BODY}</body></html>".encode()


def test_all_engines_beside_what_is_taken(tmp_path: Path) -> None:
    shown = try_page(PAGE, "https://a.org/", "text/html", tmp_path)
    assert (shown.by, shown.rule, shown.problem) == ("trafilatura", None, None)
    assert shown.metadata["title"] == "Head"
    assert [trial.engine for trial in shown.trials] == list(ENGINES)
    assert all(trial.problem is None and trial.characters == len(trial.text) > 0 for trial in shown.trials)
    assert all(trial.seconds >= 0 for trial in shown.trials)
    assert shown.trials[0].text == shown.text
    assert "Menu" in shown.trials[-1].text
    assert "Menu" not in shown.text


def test_a_rule_by_host_or_by_name(tmp_path: Path) -> None:
    (tmp_path / "a.org.yaml").write_text("content: main\ntitle: h1\n")
    for url, name in (("https://a.org/x", None), ("page.html", "a.org")):
        shown = try_page(PAGE, url, None, tmp_path, name)
        assert (shown.by, shown.rule, shown.metadata["title"]) == ("rule", str(tmp_path / "a.org.yaml"), "Heading")
    (tmp_path / "b.org.py").write_text("def extract(soup):\n    return soup.h1.get_text()\n")
    little = try_page(PAGE, "https://b.org/", None, tmp_path)
    assert (little.by, little.rule) == ("trafilatura", str(tmp_path / "b.org.py")), "seven letters are too little"
    with pytest.raises(BadInput, match="no rule 'c'"):
        try_page(PAGE, "", None, tmp_path, "c")
    (tmp_path / "d.org.py").write_text("def extract(soup):\n    return soup.table.get_text()\n")
    with pytest.raises(AttributeError):
        try_page(PAGE, "https://d.org/", None, tmp_path)


def test_what_would_be_dropped_says_why(tmp_path: Path) -> None:
    assert try_page(b"%PDF-1.7", "x.pdf", None, tmp_path).problem == "binary"
    assert try_page(b"<div>" * 20_000, "x", None, tmp_path).problem == "too_deep"
    assert try_page(b"<html><body></body></html>", "x", None, tmp_path).problem == "no_text"
    hidden = PAGE.replace(b"<title>", b"<meta name=robots content=noindex><title>")
    assert try_page(hidden, "x", None, tmp_path).problem == "noindex"
    plain = try_page("Grüße".encode(), "x.txt", "text/plain", tmp_path)
    assert (plain.text, plain.by, plain.trials) == ("Grüße", "text", ())

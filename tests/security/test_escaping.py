"""Text of others stays text wherever it is shown: report, cards, Prefect's artifacts, the voting page."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from bs4 import BeautifulSoup
from markdown_it import MarkdownIt

from llm_core.release.card import DataFacts, ModelFacts, markdown, render_card, render_data_card
from tasks import summary

EVIL = [
    "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "[click](javascript:alert(1))",
    "![x](http://evil.example/x.png)", "[a][b]\n\n[b]: http://evil.example/", "<http://evil.example/>", "`code`",
    "a | b | <b>c</b>", "&lt;script&gt;", "\\[x](http://evil.example/)", "&#x3C;script&#x3E;", "<!-- x",
    "\n# heading\n", "- item", "1. item", "---", "===", "~~~ x", "* * *", "> said",
]  # fmt: skip


def shown(text: str) -> BeautifulSoup:
    """What a reader's program makes of Markdown that may hold HTML."""
    return BeautifulSoup(MarkdownIt("commonmark", {"html": True}).enable("table").render(text), "lxml")


@pytest.mark.parametrize("evil", EVIL)
def test_markdown_shows_the_text_itself(evil: str) -> None:
    page = shown(f"- {markdown(evil)}")
    assert {tag.name for tag in page.find_all()} == {"html", "body", "ul", "li"}
    assert page.get_text().split() == evil.split()


@pytest.mark.parametrize("evil", EVIL)
def test_cards(evil: str) -> None:
    row = {"source": evil, "figure": evil, "value": 0.5, "rater": evil}
    card = render_card(
        ModelFacts(evil, evil, [row], {"pretrain": {evil: evil}}, {evil: [(1, 2.0), (2, 1.0)]}, [row], [row], evil,
                   [row], evil, [evil], {evil: evil})
    )  # fmt: skip
    data = render_data_card(DataFacts(evil, evil, *[[row]] * 7, [evil], [evil], {evil: evil}))
    for page in (shown(card), shown(data)):
        assert not page.find(["script", "img", "a", "code", "b", "h3"])
        assert len(page.find_all("h1")) == 1
        assert page.find("table")
        assert " ".join(evil.split()).split()[0] in page.get_text()


def test_prefect_artifacts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made: dict[str, str] = {}
    monkeypatch.setattr("prefect.artifacts.create_markdown_artifact", lambda text, key, **_: made.update({key: text}))
    monkeypatch.setattr("llm_core.artifacts.digest", lambda _: "same")
    rows = [{"change": "new", "url": f"http://a.example/{evil}"} for evil in EVIL]
    space = SimpleNamespace(read_report=lambda _: {"tables": {"refresh": rows}}, product=Path, name="main")
    session: Any = SimpleNamespace(space=space, raw_before="same")
    summary.changes(session)
    told = SimpleNamespace(states={}, promotion=SimpleNamespace(reason=" ".join(EVIL)), links={})
    summary._prefect_artifact(told, {})  # type: ignore[arg-type]
    assert set(made) == {"changes", "summary"}
    for text in made.values():
        page = shown(text)
        assert not page.find(["script", "img", "a", "code", "b", "h1"]), page
        assert "<script>alert(1)</script>" in page.get_text()


def test_pages_forbid_scripts_and_everything_from_elsewhere(root: Path) -> None:
    for name in ("report", "scaling"):
        text = (root / "apps" / f"{name}.html.j2").read_text()
        assert "default-src 'none'; style-src 'unsafe-inline'; img-src data:" in text
        assert not re.search(r"<script|\|\s*safe|javascript:|\son\w+=", text)
        assert text.index("Content-Security-Policy") < text.index("<style")

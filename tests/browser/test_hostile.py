"""A model whose answers are made to attack the page: in a real browser they stay text."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

pytestmark = pytest.mark.timeout(900)
HIT = "window.hit = 1"
TRACKER = "http://127.0.0.1:9"
"""Nobody answers there."""
ANSWERS = (
    f"<script>{HIT}</script><img src=x onerror='{HIT}'><svg onload='{HIT}'></svg>",
    f"[click](javascript:{HIT.replace(' ', '')}) ![x](http://evil.example/x.png) <a href='javascript:{HIT}'>here</a>",
)
MODEL = f"<img src=x onerror='{HIT}'>[m](javascript:{HIT.replace(' ', '')})"
SERVE = """
import sys
from pathlib import Path
from apps.chat import *
from tasks.exchanges import Shown

class Hostile(Models):
    def pair(self, first=ANY, second=ANY):
        return sys.argv[3], sys.argv[3]

    def answer(self, name, prompt, draw, seed):
        text = sys.argv[4 + seed % 2]
        return Shown(text + prompt[-1]["content"], name, "0" * 64, {"seed": seed}, 0, 1)

models = Hostile(Path(sys.argv[1]))
models.names = (sys.argv[3],)
draw, password = Draw(), ""
uvicorn.run(application(Page(Path(sys.argv[1]), models, draw), password), host="127.0.0.1", port=int(sys.argv[2]),
            log_level="warning")
"""


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory, browser: Any, page_from: Any) -> Iterator[str]:
    """The voting page with a model that says what an attacker would have it say, and is called so."""
    folder = tmp_path_factory.mktemp("hostile")

    def command(port: int) -> list[str]:
        return [sys.executable, "-c", SERVE, str(folder), str(port), MODEL, *ANSWERS]

    environment = os.environ | {"MLFLOW_TRACKING_URI": TRACKER}
    with page_from(command, 600, env=environment, stdin=subprocess.DEVNULL) as address:
        yield address


def test_a_hostile_answer_stays_text(driver: ModuleType, browser: Any, hostile: str) -> None:
    prompt = f"<b>bold</b><img src=x onerror='{HIT}'>"
    asked: list[str] = []
    dialogs: list[str] = []
    with driver.open_page(browser, hostile) as page:
        page.on("request", lambda request: asked.append(request.url))
        page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
        left, right = driver.ask(page, prompt)
        assert {left, right} == {answer + prompt for answer in ANSWERS}, "what the page shows is the text itself"
        page.get_by_text("Write a better answer").click()
        page.locator("#edited-of input").first.check()
        driver.expect(page.locator("#edited textarea")).to_have_value(left)
        told = driver.vote(page, "left", why=ANSWERS[0])
        assert MODEL in told, "the model's name is shown as it is"
        for where in ("#left", "#right", "#status", "#why", "#edited"):
            found = page.locator(f"{where} script, {where} img, {where} svg[onload], {where} b")
            assert found.count() == 0, f"{where}: {found.first.evaluate('e => e.outerHTML')}"
            links = page.locator(f"{where} a").evaluate_all("all => all.map(a => a.getAttribute('href'))")
            assert set(links) <= {TRACKER}, f"{where}: only the tracker's own address, which the page tells, is a link"
        assert page.locator("a[href^='javascript']").count() == 0
        assert page.evaluate("window.hit") is None, "a script of an answer has run"
        assert page.evaluate("(() => { window.hit = 2; return window.hit })()") == 2, "the mark can be seen"
    assert dialogs == []
    assert asked, "requests are seen"
    elsewhere = [url for url in asked if not url.startswith((hostile, "data:", "blob:"))]
    assert elsewhere == [], "the page fetches what an answer names"


def test_a_hostile_complaint_stays_text(driver: ModuleType, browser: Any, hostile: str) -> None:
    """What is refused is told in the same place, as Markdown: the reason may repeat what somebody typed."""
    with driver.open_page(browser, hostile) as page:
        page.locator("#prompt textarea").fill(f"<img src=x onerror='{HIT}'>" * 1000)
        page.locator("#ask").click()
        driver.expect(page.locator("#status")).to_contain_text("characters; at most")
        assert page.locator("#status img").count() == 0
        assert page.evaluate("window.hit") is None


def test_the_test_would_see_it(driver: ModuleType, browser: Any, tmp_path: Path) -> None:
    """The same answers put into a page as HTML: the mark is set, so its absence above says something."""
    path = tmp_path / "page.html"
    path.write_text(f"<!doctype html><body>{ANSWERS[0]}</body>")
    with driver.open_page(browser, path.as_uri()) as page:
        page.wait_for_function("window.hit === 1")

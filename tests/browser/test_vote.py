"""A vote given in a real browser ends in a trained model whose lineage names it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from deployments import servers
from llm_core import artifacts
from tasks.workspace import Workspace

pytestmark = pytest.mark.timeout(1800)
WORDS = (
    "apple", "tree", "house", "window", "river", "stone", "cloud", "garden", "bread", "table", "candle", "mirror",
    "forest", "island", "letter", "bridge", "summer", "winter", "button", "carpet",
)  # fmt: skip


@pytest.fixture(scope="module")
def page_url(voting_project: Workspace, browser: Any) -> Iterator[str]:
    """The voting page, on which the chat model answers twice."""
    port = servers.free_port(0)
    url = f"http://127.0.0.1:{port}"
    options = ["--model", "models/chat", "--max-tokens", "10", "--port", str(port)]
    command = [sys.executable, "-m", "flows.cli", "chat", *options]
    with open(voting_project.root / "chat.log", "wb") as log:
        process = subprocess.Popen(command, cwd=voting_project.root, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + servers.PATIENCE_S
        while not servers.answers(f"{url}/health"):
            assert process.poll() is None, (voting_project.root / "chat.log").read_text()
            assert time.monotonic() < deadline, "the page does not answer"
            time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture(scope="module")
def given(driver: ModuleType, browser: Any, page_url: str) -> dict[str, str]:
    """Votes clicked in the browser: the preference of each by its trace. Equal or empty answers get a tie."""
    votes: dict[str, str] = {}
    with driver.open_page(browser, page_url) as page:
        for number, word in enumerate(WORDS):
            assert not page.locator("#vote-left").is_enabled()
            left, right = driver.ask(page, f"How long is the word {word}?")
            told_apart = len({left.strip(), right.strip()} - {""}) == 2
            choice = ("left", "right")[number % 2] if told_apart else "tie"
            text = driver.vote(page, choice, why=f"because of {word}")
            assert "Left: " in text
            votes[driver.trace_in(text)] = choice
            assert not page.locator("#vote-left").is_enabled()
    return votes


def test_votes_become_a_model_whose_lineage_names_them(voting_project: Workspace, given: dict[str, str]) -> None:
    space = voting_project
    clear = [trace for trace, choice in given.items() if choice != "tie"]
    assert len(clear) >= 14, f"the model of seconds answers almost always the same: {given}"
    command = [sys.executable, "-m", "flows.cli", "feedback", "--json"]
    done = subprocess.run(command, cwd=space.root, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    summary = json.loads(done.stdout)
    assert {verb: summary["states"][verb] for verb in ("collect", "reward", "align", "evaluate")} == dict.fromkeys(
        ("collect", "reward", "align", "evaluate"), "ran"
    )
    lines = [json.loads(line) for line in (space.root / "feedback" / "votes.jsonl").read_text().splitlines()]
    written = {line["id"]: line["preference"] for line in lines if line["id"] in given}
    assert written == {trace: {"left": "a", "right": "b"}.get(choice, choice) for trace, choice in given.items()}
    assert all(line["why"].startswith("because of ") for line in lines if line["id"] in given)

    chain = {verb: space.read_report(verb) or {} for verb in ("collect", "reward", "align")}
    assert chain["align"]["product"] == artifacts.digest(space.product("aligned"))
    weights = [artifacts.sha256(space.product(name) / "model.safetensors") for name in ("chat", "aligned")]
    assert weights[0] != weights[1], "the votes trained nothing"
    assert chain["align"]["inputs"]["votes"] == chain["collect"]["product"] == artifacts.digest(space.product("votes"))
    assert chain["align"]["inputs"]["reward"] == chain["reward"]["product"]
    assert {row["rater"] for row in chain["collect"]["tables"]["votes"]} == {"person"}
    told = subprocess.run(
        [sys.executable, "-m", "flows.cli", "lineage", "aligned", "--json"],
        cwd=space.root, capture_output=True, text=True, env=os.environ,
    )  # fmt: skip
    assert told.returncode == 0, told.stderr
    assert set(clear) <= set(json.loads(told.stdout)["votes"]["traces"])
    page = (space.root / "reports" / "index.html").read_text()
    assert all(trace in page for trace in clear)
    assert "votes by people" in page


def test_without_new_votes_nothing_runs(voting_project: Workspace, given: dict[str, str]) -> None:
    before = Path(voting_project.root / "feedback" / "votes.jsonl").read_bytes()
    command = [sys.executable, "-m", "flows.cli", "feedback", "--json"]
    done = subprocess.run(command, cwd=voting_project.root, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert set(json.loads(done.stdout)["states"].values()) == {"fresh"}
    assert Path(voting_project.root / "feedback" / "votes.jsonl").read_bytes() == before

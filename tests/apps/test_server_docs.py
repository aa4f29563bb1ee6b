"""docs/serve.md keeps its word: its examples run as they stand, its options and paths exist."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from tests.apps.conftest import Running


@pytest.fixture(scope="module")
def page(root: Path) -> str:
    return (root / "docs" / "serve.md").read_text()


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page, re.DOTALL | re.MULTILINE)


def test_the_examples_run(page: str, served: Running) -> None:
    shell = blocks(page, "bash")
    assert len(shell) == 3
    said = []
    for example in shell:
        command = example.replace("http://127.0.0.1:8000", served.url)
        said.append(subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True).stdout)
    assert json.loads(said[0])["choices"][0]["message"]["role"] == "assistant"
    assert said[1].rstrip().endswith("data: [DONE]")
    assert json.loads(said[2])["data"][0]["id"] == "groundup"
    (program,) = blocks(page, "python")
    code = program.replace("http://127.0.0.1:8000", served.url)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_options_commands_and_paths_exist(page: str, served: Running) -> None:
    from flows.cli import app

    command = typer.main.get_command(app).commands["serve"]  # type: ignore[attr-defined]
    options = {name for parameter in command.params for name in parameter.opts}
    assert set(re.findall(r"`(--[a-z-]+)", page)) <= options
    for line in re.findall(r"^\$ (?:GROUNDUP_API_KEY=\S+ )?groundup (.*)$", page, re.MULTILINE):
        name, *arguments = line.split()
        assert name == "serve"
        command.make_context("serve", arguments, resilient_parsing=False)
    described = served.http.get("/openapi.json").json()["paths"]
    for method, path in re.findall(r"`(GET|POST) (/[a-z/1._]+)`", page):
        assert path == "/openapi.json" or method.lower() in described[path], path
    served.http.post("/v1/completions", json={"model": "groundup", "prompt": "a", "max_tokens": 1})
    told = re.findall(r"^# TYPE groundup_(\S+) ", served.http.get("/metrics").text, re.MULTILINE)
    section = page[page.index("begin with groundup_") :]
    named = {
        name for row in re.findall(r"^\| (`.*?) \|", section, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)
    }
    assert named == {name for name in told if not name.endswith("_created")}

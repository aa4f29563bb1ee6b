"""`groundup feedback`: votes that were kept while the tracker was down become a model; too few and none are said."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from apps.answering import Draw, Models
from apps.chat import Page
from deployments import servers, supervisor
from tasks import exchanges, experiments
from tasks.workspace import Workspace


def feedback(root: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flows.cli", "feedback", "--json"]
    return subprocess.run(command, cwd=root, capture_output=True, text=True)


def test_without_a_chat_model_it_says_what_is_missing(workspace: Workspace, root: Path, tmp_path: Path) -> None:
    text = (root / "params.yaml").read_text()
    project = experiments.make_workspace(root, tmp_path / "project", text, cache=tmp_path / "cache").root
    done = feedback(project)
    assert done.returncode == 2, done.stderr
    assert "models/base: no whole product here" in done.stderr.splitlines()[-1]


def test_votes_kept_without_a_tracker_become_a_model(
    voting_project: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = voting_project
    page = Page(space.root, Models(space.root, ["models/chat"]), Draw(max_new_tokens=10))
    clear = 0
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
        for number in range(60):
            asked = page.ask(f"How long is the word word{number}?")
            shown = asked["exchange"]
            texts = {shown.left.text.strip(), shown.right.text.strip()} - {""}  # collect leaves out empty answers
            side = ("left", "right")[clear % 2] if len(texts) == 2 else "tie"
            clear += side != "tie"
            told = page.vote(asked, side, "Ada", "", "", "")  # type: ignore[arg-type]
            assert "kept on this machine" in told
            if clear >= 18:
                break
    assert clear >= 18
    done = feedback(space.root)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert exchanges.waiting(space.root) == []
    summary: dict[str, Any] = json.loads(done.stdout)
    assert [summary["states"][verb] for verb in ("collect", "reward", "align")] == ["ran"] * 3
    rater = exchanges.rater_name(space.root, "Ada")
    lines = [json.loads(line) for line in (space.root / "feedback" / "votes.jsonl").read_text().splitlines()]
    mine = {line["id"] for line in lines if line["rater"] == rater}
    report = space.read_report("collect")
    assert report is not None
    assert {row["rater"] for row in report["tables"]["votes"]} == {"person"}
    assert {row["trace"] for row in report["tables"]["people"]} >= {
        line["id"] for line in lines if line["id"] in mine and line["preference"] in ("a", "b")
    }
    assert (space.read_report("align") or {})["inputs"]["votes"] == report["product"]


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_enough_votes_start_it(voting_project: Workspace) -> None:
    from deployments.automations import ENOUGH_VOTES

    supervisor.up(voting_project.root, lambda _: None)
    try:
        before = _runs()
        for _ in range(ENOUGH_VOTES):
            exchanges._announce(voting_project.root)
        deadline = time.monotonic() + 300
        while not (new := [run for run in _runs() if run["id"] not in {old["id"] for old in before}]):
            assert time.monotonic() < deadline, "no run of the deployment feedback"
            time.sleep(0.5)
        assert len(new) == 1
        assert new[0]["created_by"]["type"] == "AUTOMATION"
    finally:
        servers.stop(voting_project.root, (servers.KEEPER, servers.WORKER, servers.CHAT))


def _runs() -> list[dict[str, Any]]:
    body = json.dumps({"deployments": {"name": {"any_": ["feedback"]}}}).encode()
    url = f"{os.environ['PREFECT_API_URL']}/flow_runs/filter"
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as response:
        found: list[dict[str, Any]] = json.load(response)
    return found

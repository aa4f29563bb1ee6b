"""The whole job at tiny size, through a real Prefect server, a real MLflow server and real DVC: both doors, one truth.

The tests stand in the order of a story and share one workspace: each goes on where the one before left it.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from llm_core import artifacts
from llm_core.pipeline import PIPELINE, VERBS
from tasks import experiments, tracking
from tasks.runner import child_environment
from tasks.workspace import Workspace


def command(space: Workspace, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """A command in the workspace with the virtual environment's programs first on PATH, as `make repro` has it."""
    environment = child_environment(Path(os.devnull))
    del environment["GROUNDUP_EVENTS"]
    done = subprocess.run(arguments, cwd=space.root, env=environment, capture_output=True, text=True)
    assert not check or done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done


def groundup(space: Workspace, *arguments: str) -> dict[str, Any]:
    """`groundup run --json ...` and its summary."""
    done = command(space, sys.executable, "-m", "flows.cli", "run", "--json", *arguments)
    summary: dict[str, Any] = json.loads(done.stdout)
    return summary


def set_param(space: Workspace, section: str, **values: Any) -> None:
    content = yaml.safe_load((space.root / "params.yaml").read_text())
    content[section] |= values
    (space.root / "params.yaml").write_text(yaml.safe_dump(content, sort_keys=False))


@pytest.fixture(scope="module")
def first_run(workspace: Workspace) -> dict[str, Any]:
    return groundup(workspace)


def test_the_job_ends_with_a_verdict_a_report_and_links(workspace: Workspace, first_run: dict[str, Any]) -> None:
    assert first_run["states"] == dict.fromkeys(VERBS, "ran")
    assert first_run["promotion"]["reason"]
    assert set(first_run["links"]) == {"report", "Prefect run", "MLflow charts"}
    page = (workspace.root / "reports" / "index.html").read_text()
    assert first_run["promotion"]["champion"] in page or first_run["promotion"]["champion"] == "none"
    for row in PIPELINE:
        artifacts.verify(workspace.product(row.makes))


def test_every_stage_is_an_mlflow_run_with_its_inputs_and_outputs(
    workspace: Workspace, first_run: dict[str, Any]
) -> None:
    uri = tracking.tracking_uri(workspace.root)
    assert uri is not None
    client = tracking.client(uri)
    for row in PIPELINE:
        report = workspace.read_report(row.verb)
        assert report is not None
        run = client.get_run(report["run"]["mlflow_run_id"])
        assert run.info.status == "FINISHED", row.verb
        assert run.data.params, row.verb
        assert {f"final/{name}" for name in report["metrics"]} <= set(run.data.metrics), row.verb
        digests = {i.dataset.name: json.loads(i.dataset.source)["sha256"] for i in run.inputs.dataset_inputs}
        assert digests == report["inputs"], row.verb
        assert run.data.tags["build"], row.verb
        names = {entry.path for entry in client.list_artifacts(run.info.run_id)}
        assert {"report.json", "plots", "versions.json"} <= names, row.verb
    losses = client.get_metric_history(workspace.read_report("pretrain")["run"]["mlflow_run_id"], "train/loss")  # type: ignore[index]
    assert len(losses) > 5


def ask_prefect(path: str, flow_run: str) -> list[dict[str, Any]]:
    query = json.dumps({"flow_runs": {"id": {"any_": [flow_run]}}}).encode()
    url = f"{os.environ['PREFECT_API_URL']}/{path}/filter"
    request = urllib.request.Request(url, query, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as response:
        found: list[dict[str, Any]] = json.load(response)
    return found


def test_prefect_shows_what_became_of_each_stage(first_run: dict[str, Any]) -> None:
    flow_run = first_run["links"]["Prefect run"].rpartition("/")[2]
    states = {task["name"].rpartition("-")[0]: task["state"]["name"] for task in ask_prefect("task_runs", flow_run)}
    assert {verb: states[verb] for verb in VERBS} == dict.fromkeys(VERBS, "Ran")
    keys = {artifact["key"] for artifact in ask_prefect("artifacts", flow_run)}
    assert {"summary", "progress-pretrain", "progress-align"} <= keys


def test_a_dead_tracker_fails_nothing_and_is_told_later(
    workspace: Workspace, first_run: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert groundup(workspace, "tokenize", "--force", "tokenize")["states"]["tokenize"] == "ran"
    assert len(list((workspace.root / ".groundup" / "outbox").iterdir())) == 1
    monkeypatch.undo()
    assert "sent 1 run" in command(workspace, sys.executable, "-m", "flows.cli", "sync").stdout


def test_a_disk_that_is_full_leaves_no_half_product(workspace: Workspace, first_run: dict[str, Any]) -> None:
    """A limit on the size of files stands in for the full disk: every write beyond it fails."""
    root = workspace.root / "runs" / "full"
    experiments.create(workspace.root, "full", {})
    command(Workspace.at(root), "dvc", "checkout", "data/corpus")
    limited = "import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)); " + (
        "sys.argv = ['run', 'tokenize']; runpy.run_module('tasks.run', run_name='__main__')"
    )
    done = command(Workspace.at(root), sys.executable, "-c", limited, check=False)
    assert done.returncode == 1, done.stderr
    assert "File too large" in done.stderr
    assert not (root / "data" / "shards").exists()
    assert command(Workspace.at(root), sys.executable, "-m", "tasks.run", "tokenize").returncode == 0
    assert artifacts.digest(root / "data" / "shards") == artifacts.digest(workspace.product("shards"))


def test_afterwards_dvc_has_nothing_to_do(workspace: Workspace, first_run: dict[str, Any]) -> None:
    assert "up to date" in command(workspace, "dvc", "status").stdout
    before = {row.verb: workspace.report(row.verb).read_bytes() for row in PIPELINE}
    said = command(workspace, "dvc", "repro").stdout
    assert said.count("didn't change, skipping") == len(PIPELINE), said
    assert before == {row.verb: workspace.report(row.verb).read_bytes() for row in PIPELINE}


def test_a_second_run_finds_all_fresh_and_the_verdict_known(workspace: Workspace, first_run: dict[str, Any]) -> None:
    again = groundup(workspace)
    assert again["states"] == dict.fromkeys(VERBS, "fresh")
    assert again["promotion"]["state"] == "fresh"
    assert again["promotion"]["reason"] == first_run["promotion"]["reason"]


def test_a_changed_setting_reruns_what_depends_on_it_and_going_back_runs_nothing(
    workspace: Workspace, first_run: dict[str, Any]
) -> None:
    original = (workspace.root / "params.yaml").read_text()
    digest = artifacts.digest(workspace.product("scores"))
    set_param(workspace, "evaluate", seed=5)
    changed = groundup(workspace)
    assert changed["states"] == dict.fromkeys(VERBS, "fresh") | {"evaluate": "ran"}
    (workspace.root / "params.yaml").write_text(original)
    back = groundup(workspace)
    assert back["states"] == dict.fromkeys(VERBS, "fresh") | {"evaluate": "restored"}
    assert artifacts.digest(workspace.product("scores")) == digest


def test_the_other_door_first(workspace: Workspace, first_run: dict[str, Any]) -> None:
    """`dvc repro` runs the stage, logs it to MLflow, and `groundup run` finds nothing left to do."""
    set_param(workspace, "align", steps=6)
    said = command(workspace, "dvc", "repro").stdout
    assert "Running stage 'align'" in said
    assert said.count("didn't change, skipping") == len(PIPELINE) - 2
    report = workspace.read_report("align")
    assert report is not None
    assert report["params"]["steps"] == "6"
    assert report["run"]["mlflow_run_id"]
    assert groundup(workspace)["states"] == dict.fromkeys(VERBS, "fresh")


def test_a_product_put_back_by_hand_is_not_trusted(workspace: Workspace, first_run: dict[str, Any]) -> None:
    """A deleted product comes back from the cache without running."""
    artifacts._remove(workspace.product("votes"))
    states = groundup(workspace, "collect")["states"]
    assert states["collect"] == "restored"
    assert states["reward"] == "skipped"
    artifacts.verify(workspace.product("votes"))


def test_status_and_generate(workspace: Workspace, first_run: dict[str, Any]) -> None:
    rows = json.loads(command(workspace, sys.executable, "-m", "flows.cli", "status", "--json").stdout)
    assert [row["stage"] for row in rows] == list(VERBS)
    assert {row["state"] for row in rows} == {"fresh"}
    folder = str(workspace.product("chat"))
    said = command(workspace, sys.executable, "-m", "flows.cli", "generate", "What is 1 plus 1?", "--model", folder)
    assert said.stdout.strip()


def test_a_model_leads_back_to_its_urls_and_a_url_to_its_models(
    workspace: Workspace, first_run: dict[str, Any]
) -> None:
    """Also when nothing is checked out any longer: MLflow and the DVC cache are enough."""
    found = ask_lineage(workspace, "aligned")
    made = [one["product"] for one in found["chain"]]
    assert made == ["raw", "corpus", "shards", "base", "chat", "votes", "reward", "aligned"]
    assert found["target"]["digest"] == artifacts.digest(workspace.product("aligned"))
    assert found["absent"] == []
    trained = [row for row in found["documents"] if row["split"] == "train"]
    assert trained
    assert all(row["url"].startswith("http://") and row["fetched"] and row["licence"] for row in trained)
    assert set(found["votes"]["raters"]) == {"simulated"}

    aside = workspace.root.with_name("aside")
    aside.mkdir()
    for name in ("data", "models"):
        (workspace.root / name).rename(aside / name)
    try:
        assert ask_lineage(workspace, found["target"]["run"]) == found
        of_url = ask_lineage(workspace, trained[0]["url"])
    finally:
        for name in ("data", "models"):
            (aside / name).rename(workspace.root / name)
    assert [row["id"] for row in of_url["documents"]] == [trained[0]["id"]]
    assert {"base", "chat", "aligned"} <= {one["product"] for one in of_url["models"] if one["saw"]}
    shown = command(workspace, sys.executable, "-m", "flows.cli", "lineage", "aligned").stdout
    assert found["documents"][0]["url"] in shown
    refused = command(workspace, sys.executable, "-m", "flows.cli", "lineage", "http://nowhere.invalid/", check=False)
    assert refused.returncode == 2
    assert "nowhere.invalid" in refused.stderr


def ask_lineage(space: Workspace, target: str) -> dict[str, Any]:
    """`groundup lineage --json`."""
    found: dict[str, Any] = json.loads(
        command(space, sys.executable, "-m", "flows.cli", "lineage", target, "--json").stdout
    )
    return found


def test_an_experiment_leaves_the_main_workspace_alone_and_can_be_adopted(
    workspace: Workspace, first_run: dict[str, Any]
) -> None:
    before = {row.makes: artifacts.digest(workspace.product(row.makes)) for row in PIPELINE}
    tried = groundup(workspace, "--set", "evaluate.seed=9", "--name", "other-seed")
    assert tried["states"] == dict.fromkeys(VERBS, "restored") | {"evaluate": "ran"}
    assert tried["promotion"]["state"] == "skipped"
    assert before == {row.makes: artifacts.digest(workspace.product(row.makes)) for row in PIPELINE}
    assert "up to date" in command(workspace, "dvc", "status").stdout
    command(workspace, sys.executable, "-m", "flows.cli", "adopt", "other-seed")
    assert set(groundup(workspace)["states"].values()) == {"fresh"}
    assert artifacts.digest(workspace.product("scores")) != before["scores"]


def test_a_killed_run_leaves_no_orphan_and_ends_with_the_same_bytes(
    workspace: Workspace, first_run: dict[str, Any]
) -> None:
    """SIGKILL of the run in the middle of training: the trainer saves and ends; the next run goes on from there.

    The trainer has to hear of it long before it is through with its steps. Its tracker takes connections and never
    answers, which is the longest that a stopped trainer could wait for anyone. The shell that DVC puts between itself
    and the stage is the system's: not every one makes way for its last command.
    """
    silent = socket.create_server(("127.0.0.1", 0))
    arguments = ["pretrain"]
    for setting in ("steps=1000", "evaluate_every=1000", "save_every_seconds=0.2"):
        arguments += ["--set", f"pretrain.{setting}"]
    root = workspace.root / "runs" / "killed"
    events, environment = root / ".groundup" / "events" / "pretrain.jsonl", child_environment(Path(os.devnull))
    del environment["GROUNDUP_EVENTS"]
    environment["SHELL"] = "/bin/sh"
    environment["MLFLOW_TRACKING_URI"] = f"http://127.0.0.1:{silent.getsockname()[1]}"
    run = subprocess.Popen(
        [sys.executable, "-m", "flows.cli", "run", *arguments, "--name", "killed"],
        cwd=workspace.root, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    trainer = psutil.Process(wait_for_steps(events, 40, run))
    run.kill()
    run.wait()
    _, alive = psutil.wait_procs([trainer], timeout=120)
    silent.close()
    assert not alive, "the trainer outlived the run that started it"
    told = [json.loads(line) for line in events.read_text().splitlines()]
    assert told[-1] == {"event": "failed", "text": "stopped; its resume point is kept", "code": 143}
    assert max(event["done"] for event in told if event["event"] == "progress") < 1000
    assert not (root / "models" / "base").exists()
    outbox = workspace.root / ".groundup" / "outbox"
    assert [record.name.split("-")[0] for record in outbox.iterdir()] == ["pretrain"]

    done = groundup(workspace, *arguments, "--name", "killed")
    assert done["states"]["pretrain"] == "ran"
    assert "continues from step" in events.read_text()
    assert not list(outbox.iterdir()), "what a later sync would send says that the run was killed"
    calm = groundup(workspace, *arguments, "--name", "calm", "--force", "pretrain")
    assert calm["states"]["pretrain"] == "ran"
    digests = {
        name: artifacts.digest(workspace.root / "runs" / name / "models" / "base") for name in ("killed", "calm")
    }
    assert digests["killed"] == digests["calm"]


def wait_for_steps(events: Path, steps: int, run: subprocess.Popen[bytes]) -> int:
    """Wait until the trainer has told of `steps` steps; its process number."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert run.poll() is None, "the run ended before it could be killed"
        lines = events.read_text().splitlines() if events.is_file() else []
        told = [json.loads(line) for line in lines[:-1]]
        if any(event["event"] == "progress" and event["done"] >= steps for event in told):
            return int(next(event["pid"] for event in told if event["event"] == "started"))
        time.sleep(0.05)
    raise AssertionError("the trainer never got so far")

"""The chapter "Operate" keeps its word: its commands are run in its order, in a project of tiny size of their own.

The project is a git repository with copies of the code, so that it can be committed, cloned and pulled.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from deployments import servers
from tasks import params
from tasks.experiments import OWN
from tasks.runner import child_environment
from tasks.workspace import Workspace

ROOT = Path(__file__).resolve().parents[1]
CHAPTER = (ROOT / "docs" / "operate.md").read_text()
OF_SERVERS = ("PREFECT_API_URL", "PREFECT_HOME", "MLFLOW_TRACKING_URI", "PREFECT_UI_API_URL")

STORY = {
    "groundup doctor": r"ok +params\.yaml",
    "groundup up": r"worker: http",
    "export PREFECT_API_URL=http://127.0.0.1:4200/api": r"",
    "prefect deployment ls": r"build/build.*refresh/refresh",
    "groundup run": r"pretrain (ran|restored).*gate: ",
    'prefect deployment run build/build --params \'{"settings": {"pretrain": {"optimizer": '
    '{"matrix_learning_rate": 0.008}}}, "stages": ["pretrain"]}\' --watch': r"finished",
    "groundup run pretrain --set pretrain.optimizer.matrix_learning_rate=0.03 --name faster": r"faster: .*pretrain ran"
    r".*MLflow charts: http\S+compareRunsMode=CHART",
    "groundup compare main faster": r"matrix_learning_rate.*results.*pretrain bits_per_byte",
    "groundup compare main faster --markdown": r"\| pretrain\.optimizer\.matrix_learning_rate \| [\d.]+ \| 0\.03 \|",
    "groundup adopt faster": r"now those of faster",
    "dvc metrics diff": r"reports/pretrain\.json.*bits_per_byte",
    "dvc plots diff": r"file://\S+html",
    "prefect deployment run refresh/refresh --watch": r"finished",
    "prefect automation ls": r"new data starts a build",
    "prefect flow-run ls": r"COMPLETED",
    "prefect global-concurrency-limit inspect gpu": r"active_slots|Active Slots|gpu",
    "groundup gc --dry-run": r"would remove: 0 experiments",
    "dvc remote add --default store s3://dvc/groundup": r"",
    "git add --all": r"",
    'git commit --quiet --message "Where products are"': r"",
    "dvc push": r"pushed",
    "git clone --quiet . ../clone": r"",
    "dvc --cd ../clone pull": r"fetched|added",
    "groundup status": r"evaluate +fresh",
    "groundup sync": r"nothing was waiting",
    "groundup down": r"stopped .*worker",
}
"""The chapter's commands in its order, and what each must print."""


def commands() -> list[str]:
    blocks = re.findall(r"^```console\n(.*?)^```", CHAPTER, re.DOTALL | re.MULTILINE)
    return [line[2:] for block in blocks for line in block.splitlines() if line.startswith("$ ")]


def test_every_command_of_the_chapter_is_run() -> None:
    assert commands() == list(STORY)


def test_files_and_variables_that_are_named_exist() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", CHAPTER):
        assert (ROOT / "docs" / target).exists(), target
    for path in re.findall(r"\b(deployments/[\w./-]+\w)", CHAPTER):
        assert (ROOT / path).exists(), path
    compose = (ROOT / "deployments" / "compose.yaml").read_text()
    known = set(re.findall(r"\b[A-Z][A-Z0-9]+_[A-Z0-9_]+\b", compose)) | set(OF_SERVERS)
    assert set(re.findall(r"\b[A-Z][A-Z0-9]+_[A-Z0-9_]+\b", CHAPTER)) <= known


@dataclass
class Project:
    """A project of tiny size and what the chapter's reader has typed into the environment."""

    root: Path
    environment: dict[str, str]
    printed: dict[str, str] = field(default_factory=dict)

    def run(self, command: str) -> str:
        """A command as the reader types it; what it prints."""
        program = shlex.split(command)
        where = self.root.parent / "clone" if command == "groundup status" else self.root
        if program[0] == "export":
            name, _, _ = program[1].partition("=")
            self.environment[name] = servers.running(self.root)["prefect"] + "/api"
            return ""
        if program[0] == "groundup":
            program[:1] = [sys.executable, "-m", "flows.cli"]
        done = subprocess.run(program, cwd=where, env=self.environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
        self.printed[command] = done.stdout + (done.stderr if program[0] in ("dvc", "prefect") else "")
        return self.printed[command]


@pytest.fixture(scope="module")
def project(workspace: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    boto3, moto = pytest.importorskip("boto3"), pytest.importorskip("moto.server")
    root = tmp_path_factory.mktemp("operate") / "project"
    left_out = shutil.ignore_patterns("__pycache__", "*.egg-info")
    not_needed = {*OWN, "tests", "benchmarks"}
    shutil.copytree(ROOT, root, ignore=lambda folder, names: {
        *left_out(folder, names),
        *(n for n in names if folder == str(ROOT) and (n in not_needed or n.startswith(".")))})  # fmt: skip
    for name in (".gitignore", ".dvcignore", ".dvc/config", "dvc.yaml"):
        (root / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(ROOT / name, root / name)
    tiny = params.overlay(params.read(ROOT / "params.yaml"), params.read(ROOT / "presets" / "tiny.yaml"))
    (root / "params.yaml").write_text(params.dump(tiny))
    (root / ".dvc" / ".gitignore").write_text("/config.local\n/tmp\n/cache\n")
    cache = workspace.root / ".dvc" / "cache"  # whoever ran the job at this size before has filled it
    cache.mkdir(parents=True, exist_ok=True)
    (root / ".dvc" / "cache").symlink_to(cache)
    store = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    store.start()
    host, port = store.get_host_and_port()
    environment = child_environment(Path(os.devnull)) | {
        "COLUMNS": "250",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
    }
    environment |= {
        f"GIT_{who}_{what}": "you@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
    }
    for name in (*OF_SERVERS, "GROUNDUP_EVENTS"):
        environment.pop(name, None)
    made = Project(root, environment)
    boto3.client("s3", endpoint_url=environment["AWS_ENDPOINT_URL"], region_name="us-east-1",
                 aws_access_key_id="test", aws_secret_access_key="test").create_bucket(Bucket="dvc")  # fmt: skip
    for command in ("git init --quiet", "git add --all", "git commit --quiet --message Begin"):
        subprocess.run(shlex.split(command), cwd=root, env=environment, check=True)
    yield made
    servers.stop(root)
    store.stop()


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_the_chapter_command_by_command(project: Project) -> None:
    for command, printed in STORY.items():
        if command == "groundup adopt faster":
            commit_main(project)
        if command.startswith("dvc remote add"):
            project.run("groundup run")  # of the experiment only the model was made
        told = project.run(command)
        assert re.search(printed, told, re.DOTALL), f"{command}: {told}"
        if command == "groundup compare main faster":
            three_curves_on_one_page(project)
    rows = json.loads(subprocess.run(
        [sys.executable, "-m", "flows.cli", "status", "--json"], cwd=project.root.parent / "clone",
        env=project.environment, capture_output=True, text=True, check=True).stdout)  # fmt: skip
    assert {row["stage"]: row["state"] for row in rows} == {row["stage"]: "fresh" for row in rows}
    assert not (project.root.parent / "clone" / ".groundup" / "events").exists(), "something ran in the clone"
    assert servers.running(project.root) == {}
    assert list((project.root / ".run").glob("*.json")) == []


def commit_main(project: Project) -> None:
    """What DVC's commands compare with."""
    for command in ("git add --all", "git commit --quiet --message Main"):
        subprocess.run(shlex.split(command), cwd=project.root, env=project.environment, check=True)


def three_curves_on_one_page(project: Project) -> None:
    """The printed link opens an experiment with three runs, each with a loss curve, told apart by the rate alone."""
    link = re.search(r"MLflow charts: (\S+)", project.printed[list(STORY)[6]])
    assert link
    base, experiment = re.match(r"(http://[^/]+)/#/experiments/(\d+)/", link.group(1)).groups()  # type: ignore[union-attr]
    runs = ask(f"{base}/api/2.0/mlflow/runs/search", {"experiment_ids": [experiment]})["runs"]
    rates, curves = set(), []
    for run in runs:
        values = {row["key"]: row["value"] for row in run["data"]["params"]}
        rates.add(values["optimizer.matrix_learning_rate"])
        history = f"{base}/api/2.0/mlflow/metrics/get-history?run_id={run['info']['run_id']}&metric_key=train/loss"
        curves.append([point["value"] for point in ask(history)["metrics"]])
        assert any(metric["key"] == "final/bits_per_byte" for metric in run["data"]["metrics"])
    assert len(rates) == len(runs) == 3, rates
    assert all(len(curve) >= 10 for curve in curves)
    assert len({tuple(curve) for curve in curves}) == 3


def ask(url: str, body: dict[str, Any] | None = None) -> Any:
    data = json.dumps(body).encode() if body else None
    with urllib.request.urlopen(urllib.request.Request(url, data, {"Content-Type": "application/json"})) as answer:
        return json.load(answer)

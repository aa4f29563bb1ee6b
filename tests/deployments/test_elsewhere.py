"""Groundup on other servers than its own: PostgreSQL, S3, containers, Kubernetes, Slurm."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from deployments import servers
from tasks import experiments, params
from tasks.workspace import Workspace

DEPLOYMENTS = Path(__file__).resolve().parents[2] / "deployments"
OWN = ("PREFECT_API_URL", "PREFECT_HOME", "MLFLOW_TRACKING_URI")


def without_servers() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in OWN}


@pytest.mark.timeout(900)
def test_records_go_to_postgresql_and_files_to_s3(
    root: Path, tmp_path: Path, postgres: str, s3: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run with nothing but variables set: Prefect's and MLflow's records are in PostgreSQL, the files in S3."""
    boto3, psycopg = pytest.importorskip("boto3"), pytest.importorskip("psycopg")
    for name, value in s3.items():
        monkeypatch.setenv(name, value)
    from deployments import buckets

    assert buckets.ensure(["mlflow", "dvc"]) == ["mlflow", "dvc"]
    assert buckets.ensure(["mlflow", "dvc"]) == []
    content = params.read(root / "params.yaml")
    content["acquire"] = {"sources": [{"kind": "problems", "name": "problems", "count": 50}]}
    space = experiments.make_workspace(root, tmp_path / "project", params.dump(content), cache=tmp_path / "cache")
    environment = without_servers() | {
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"postgresql+asyncpg://{postgres}/prefect",
        "MLFLOW_BACKEND_STORE_URI": f"postgresql+psycopg://{postgres}/mlflow",
        "MLFLOW_ARTIFACTS_DESTINATION": "s3://mlflow",
    }

    def groundup(*arguments: str) -> str:
        command = [sys.executable, "-m", "flows.cli", *arguments]
        done = subprocess.run(command, cwd=space.root, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        return done.stdout

    try:
        refresh = json.loads(groundup("refresh", "--no-build", "--json"))
        assert refresh["changed"]
    finally:
        groundup("down")
    with psycopg.connect(f"postgresql://{postgres}/prefect") as connection:
        found = connection.execute("SELECT state_type FROM flow_run").fetchall()
    assert found == [("COMPLETED",)]
    with psycopg.connect(f"postgresql://{postgres}/mlflow") as connection:
        (run,) = connection.execute("SELECT run_uuid FROM runs WHERE status = 'FINISHED'").fetchone()
    assert run == (space.read_report("acquire") or {})["run"]["mlflow_run_id"]
    keys = [item["Key"] for item in boto3.client("s3").list_objects_v2(Bucket="mlflow")["Contents"]]
    assert any(run in key and key.endswith(".json") for key in keys), keys
    assert not list((space.root / ".run" / "mlflow").glob("*")), "MLflow wrote to the disk too"


def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((DEPLOYMENTS / "compose.yaml").read_text())
    return found


def test_compose_hangs_together() -> None:
    """What a schema cannot say: services, volumes, hosts and variables that are named exist; ports are local."""
    content = compose()
    services = content["services"]
    assert set(services) == {"postgres", "s3", "buckets", "prefect", "mlflow", "worker"}
    for name, service in services.items():
        for other, how in service.get("depends_on", {}).items():
            assert other in services, name
            if how["condition"] == "service_healthy":
                assert "healthcheck" in services[other], f"{name} waits for {other}'s health"
        for volume in service.get("volumes", []):
            source = volume.partition(":")[0]
            assert source == ".." or source in content["volumes"], f"{name}: {volume}"
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), f"{name} listens to the world"
        for value in service.get("environment", {}).values():
            for host in re.findall(r"(?:://|@)([\w.]+):\d+", str(value)):
                assert host in services or host == "localhost", f"{name}: {host}"
        if "build" in service:
            context = (DEPLOYMENTS / service["build"]["context"]).resolve()
            assert (context / service["build"]["dockerfile"]).is_file()
    text = (DEPLOYMENTS / "compose.yaml").read_text()
    assert set(re.findall(r"\$\{(\w+)", text)) == {"GROUNDUP_PASSWORD", "GROUNDUP_USER"}


def test_docker_takes_the_compose_file() -> None:
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "compose", "version"], capture_output=True).returncode:
        pytest.skip("no docker compose here")
    environment = os.environ | {"GROUNDUP_PASSWORD": "password"}
    command = [docker, "compose", "-f", str(DEPLOYMENTS / "compose.yaml"), "config", "--quiet"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_commands_of_the_containers_exist() -> None:
    """Modules and options that compose.yaml starts are there."""
    for name, service in compose()["services"].items():
        match service.get("command"):
            case ["python", "-m", module, *_]:
                assert (DEPLOYMENTS.parent / f"{module.replace('.', '/')}.py").is_file(), name
            case [("prefect" | "mlflow") as tool, *arguments]:
                options = [word for word in arguments if word.startswith("--")]
                words = [word for word in arguments if word.isalpha() and word in ("server", "start")]
                done = subprocess.run(
                    [sys.executable, "-m", tool, *words, "--help"],
                    env=os.environ | {"COLUMNS": "200"}, capture_output=True, text=True, check=True,
                )  # fmt: skip
                assert all(option in done.stdout for option in options), (name, options)


def test_the_dockerfile_copies_what_is_there() -> None:
    lines = (DEPLOYMENTS / "Dockerfile").read_text().splitlines()
    for line in (line for line in lines if line.startswith("COPY")):
        for source in line.split()[1:-1]:
            assert (DEPLOYMENTS.parent / source).exists(), source


def template() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((DEPLOYMENTS / "kubernetes" / "base-job-template.json").read_text())
    return found


def test_prefect_takes_the_kubernetes_template(workspace: Workspace) -> None:
    """The server checks that every placeholder is a variable; the work pool is removed again."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate

    with get_client(sync_client=True) as client:
        pool = client.create_work_pool(
            WorkPoolCreate(name="cluster", type="kubernetes", base_job_template=template()), overwrite=True
        )
        assert pool.base_job_template == template()
        client.delete_work_pool("cluster")


def test_the_kubernetes_job_is_what_kubernetes_wants() -> None:
    """The template rendered as Prefect's worker does it: a Job with a pod that mounts the project."""
    from jsonschema import Draft202012Validator
    from prefect.utilities.templating import apply_values

    variables = template()["variables"]
    Draft202012Validator.check_schema(variables)
    defaults = {name: about["default"] for name, about in variables["properties"].items() if "default" in about}
    Draft202012Validator(variables).validate(defaults)
    given = defaults | {
        "name": "pretrain",
        "labels": {"app": "groundup"},
        "env": {"A": "b"},
        "command": "prefect flow-run execute",
    }
    job = apply_values(template()["job_configuration"], given)["job_manifest"]
    assert (job["apiVersion"], job["kind"], job["metadata"]["generateName"]) == ("batch/v1", "Job", "pretrain-")
    pod = job["spec"]["template"]["spec"]
    assert pod["restartPolicy"] == "Never"
    assert pod["terminationGracePeriodSeconds"] >= 30, "Cancel gives a training 30 s to save"
    assert job["spec"]["backoffLimit"] == 0
    (container,) = pod["containers"]
    assert container["resources"]["limits"] == {"memory": "4Gi", "nvidia.com/gpu": 0}
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    assert not re.search(r"\{\{", json.dumps(apply_values(template()["job_configuration"], given, remove_notset=True)))


SLEEPER = """\
#!{python}
import signal, sys, time
if sys.argv[1] == "down":
    sys.exit(0)
print("build", *sys.argv[1:], flush=True)
def save(*_):
    print("saved", flush=True)
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
open("started", "w").close()
while "quick" not in sys.argv:
    time.sleep(0.05)
"""


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """The environment of a Slurm job in a project whose `groundup` only waits, and a `scontrol` that writes down."""
    programs = tmp_path / ".venv" / "bin"
    programs.mkdir(parents=True)
    (programs / "groundup").write_text(SLEEPER.format(python=sys.executable))
    (programs / "scontrol").write_text('#!/bin/bash\necho "$@" > requeued\n')
    for path in programs.iterdir():
        path.chmod(0o755)
    return os.environ | {"SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_JOB_ID": "17"}


def test_a_slurm_job_whose_time_is_up_saves_and_queues_itself_again(slurm: dict[str, str], tmp_path: Path) -> None:
    command = ["bash", str(DEPLOYMENTS / "slurm" / "groundup.sbatch"), "pretrain"]
    with subprocess.Popen(command, env=slurm, stdout=subprocess.PIPE, text=True) as job:
        deadline = time.monotonic() + 120
        while not (tmp_path / "started").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        job.send_signal(signal.SIGTERM)
        told, _ = job.communicate(timeout=120)
    assert (job.returncode, told.split("\n")[:2]) == (0, ["build run pretrain", "saved"])
    assert (tmp_path / "requeued").read_text() == "requeue 17\n"


def test_a_slurm_job_that_ends_by_itself_is_not_queued_again(slurm: dict[str, str], tmp_path: Path) -> None:
    command = ["bash", str(DEPLOYMENTS / "slurm" / "groundup.sbatch"), "quick"]
    done = subprocess.run(command, env=slurm, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "build run quick\n")
    assert not (tmp_path / "requeued").exists()


def test_a_worker_in_a_container_serves_the_named_servers(workspace: Workspace, tmp_path: Path) -> None:
    """`python -m deployments.supervisor`: deploys to PREFECT_API_URL and becomes a worker there."""
    port = servers.free_port(0)
    log = tmp_path / "worker.log"
    with open(log, "wb") as output:
        worker = subprocess.Popen(
            [sys.executable, "-m", "deployments.supervisor", str(workspace.root)],
            stdout=output, stderr=subprocess.STDOUT, env=os.environ | {"PREFECT_WORKER_WEBSERVER_PORT": str(port)},
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 300
        while "Worker 'local' started" not in log.read_text() and time.monotonic() < deadline:
            assert worker.poll() is None, log.read_text()
            time.sleep(0.2)
        assert "Worker 'local' started" in log.read_text(), log.read_text()
    finally:
        worker.terminate()
        worker.wait(60)


def test_a_worker_without_named_servers_says_what_is_missing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "deployments.supervisor", str(tmp_path)]
    done = subprocess.run(command, env=without_servers(), capture_output=True, text=True)
    assert done.returncode == 2
    assert (
        done.stderr.strip()
        == "groundup: PREFECT_API_URL and MLFLOW_TRACKING_URI must name a server; without them, use groundup up"
    )

"""Deployment files of Dask clusters: what they call exists, and the scheduler listens where they say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from distributed.cli import dask_scheduler, dask_worker


def parsed(command: list[str]) -> dict[str, Any]:
    """The options of `dask worker ...` as the program itself reads them; unknown ones would end it."""
    assert command[0] == "dask"
    main = {"worker": dask_worker.main, "scheduler": dask_scheduler.main}[command[1]]
    arguments = ["tcp://127.0.0.1:1", *command[2:]] if command[1] == "worker" else command[2:]
    return dict(main.make_context(command[1], list(arguments), resilient_parsing=False).params)


def test_the_kubernetes_cluster(root: Path) -> None:
    cluster = yaml.safe_load((root / "deployments" / "dask" / "kubernetes.yaml").read_text())
    spec = cluster["spec"]
    (worker,) = spec["worker"]["spec"]["containers"]
    (scheduler,) = spec["scheduler"]["spec"]["containers"]
    assert worker["image"] == scheduler["image"], "workers refuse work from other code"
    assert parsed(worker["args"])["nthreads"] == 1
    parsed(scheduler["args"])
    mounts = {mount["name"] for mount in worker["volumeMounts"]}
    assert mounts == {volume["name"] for volume in spec["worker"]["spec"]["volumes"]}
    ports = {port["name"]: port["containerPort"] for port in scheduler["ports"]}
    served = {port["port"]: ports[port["targetPort"]] for port in spec["scheduler"]["service"]["ports"]}
    assert served == {8786: 8786, 8787: 8787}
    chosen = spec["scheduler"]["service"]["selector"]
    assert chosen == {"dask.org/cluster-name": cluster["metadata"]["name"], "dask.org/component": "scheduler"}


def test_the_slurm_settings(root: Path) -> None:
    settings = yaml.safe_load((root / "deployments" / "dask" / "jobqueue.yaml").read_text())["jobqueue"]["slurm"]
    assert settings["cores"] == settings["processes"], "one thread a worker"
    parsed(["dask", "worker", *settings["worker-extra-args"]])
    command = [sys.executable, "-m", "deployments.dask.slurm", "--help"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    assert "groundup run --cluster" in done.stdout

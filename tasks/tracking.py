"""MLflow: every run of a stage, forwarded from its record on disk, so that a tracker that is down loses nothing.

A record is a directory: run.json (who, with what), metrics.jsonl (the truth, written first by the stage's process),
artifacts/ and status (at the end), sent.json (the MLflow run and how much of it has arrived). `Forwarder` sends it in
batches from a thread while the stage works; `sync` sends later what could not be sent then.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from llm_core import artifacts
from tasks import secrets

EXPERIMENT = "groundup/{}"
BATCH = 1000  # MLflow's limit for one call


def tracking_uri(project: Path) -> str | None:
    """The tracking server: MLFLOW_TRACKING_URI, else the project's own if it has one running, else None."""
    if uri := os.environ.get("MLFLOW_TRACKING_URI"):
        return secrets.tracker(uri)
    state = project / ".run" / "mlflow.json"
    return json.loads(state.read_text())["url"] if state.is_file() else None


def client(uri: str) -> Any:
    """An MLflow client with short patience: a dead tracker must not hold up a stage."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    import mlflow  # takes seconds, and is needed only where something is logged

    logging.getLogger("mlflow").setLevel(logging.WARNING)
    return mlflow.MlflowClient(tracking_uri=uri)


def ask(uri: str, path: str, **query: str) -> dict[str, Any] | None:
    """The answer of MLflow's REST API to a GET, or None: for a run with nothing to do, which imports no mlflow."""
    return secrets.answer_of_tracker(f"{uri}/api/2.0/mlflow/{path}?{urllib.parse.urlencode(query)}")


def experiment_id(mlflow_client: Any, name: str) -> str:
    """The id of experiment `groundup/<name>`, made if absent."""
    full = EXPERIMENT.format(name)
    found = mlflow_client.get_experiment_by_name(full)
    return str(found.experiment_id if found else mlflow_client.create_experiment(full))


def charts_link(uri: str, experiment: str) -> str:
    """The page on which the curves of an experiment's runs draw together."""
    return f"{uri}/#/experiments/{experiment}/runs?compareRunsMode=CHART&workflowType=machine_learning"


class Sender:
    """Sends one record to MLflow; each call continues where the last one, or an earlier process, stopped."""

    def __init__(self, record: Path, uri: str) -> None:
        self.record = record
        self.client = client(uri)
        self.info = json.loads((record / "run.json").read_text())
        sent = record / "sent.json"
        self.sent: dict[str, Any] = json.loads(sent.read_text()) if sent.is_file() else {"run_id": None, "lines": 0}
        if self.sent["run_id"] is None or not self._reopen():
            self._open_run()

    @property
    def run_id(self) -> str:
        """The MLflow run of this record."""
        return str(self.sent["run_id"])

    def _reopen(self) -> bool:
        """Continue the run that an earlier attempt opened; False if this tracker does not know it."""
        from mlflow.exceptions import RestException

        try:
            self.client.update_run(self.run_id, status="RUNNING")
        except RestException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return False
        return True

    def _open_run(self) -> None:
        from mlflow.entities import Dataset, DatasetInput, Param

        experiment = experiment_id(self.client, self.info["stage"])
        name = f"{self.info['tags']['workspace']}-{self.info['tags']['fingerprint'][:6]}"
        run_id = self.client.create_run(experiment, tags=self.info["tags"], run_name=name).info.run_id
        parameters = [Param(key, value[:6000]) for key, value in self.info["params"].items()]
        for start in range(0, len(parameters), 100):
            self.client.log_batch(run_id, params=parameters[start : start + 100])
        datasets = [
            DatasetInput(Dataset(name, digest[:36], "local", json.dumps({"sha256": digest})))
            for name, digest in self.info["inputs"].items()
        ]
        if datasets:
            self.client.log_inputs(run_id, datasets)
        self._remember(run_id=run_id, lines=0)

    def _remember(self, **values: Any) -> None:
        self.sent |= values
        artifacts.write_atomic(self.record / "sent.json", artifacts.dump_json(self.sent))

    def send_metrics(self) -> None:
        """Send the lines of metrics.jsonl that have not been sent; a resumed run's repeated steps are left out."""
        from mlflow.entities import Metric

        points, lines = [], 0
        for line in _lines(self.record / "metrics.jsonl", self.sent["lines"]):
            row, lines = json.loads(line), lines + 1
            points += [Metric(key, value, row["time"], row["step"]) for key, value in row["values"].items()]
        for start in range(0, len(points), BATCH):
            self.client.log_batch(self.run_id, metrics=points[start : start + BATCH])
        if lines:
            self._remember(lines=self.sent["lines"] + lines)

    def finish(self) -> None:
        """Send what stands at the end: final metrics are in metrics.jsonl already; artifacts and the status."""
        self.send_metrics()
        folder, status = self.record / "artifacts", self.record / "status"
        if folder.is_dir():
            self.client.log_artifacts(self.run_id, str(folder))
        if (folder / "report.json").is_file():
            product = json.loads((folder / "report.json").read_bytes())["product"]
            self.client.set_tag(self.run_id, "product", product)  # lineage finds the run by what it made
        self.client.set_terminated(self.run_id, status.read_text() if status.is_file() else "FAILED")


def _lines(path: Path, start: int) -> Iterator[str]:
    """Whole lines of a file that may be growing, from line `start` on."""
    if path.is_file():
        with open(path) as handle:
            for number, line in enumerate(handle):
                if number >= start and line.endswith("\n"):
                    yield line


class Forwarder(threading.Thread):
    """Sends a record while the stage works. Whatever goes wrong is kept in `error`, never raised into the stage."""

    def __init__(self, record: Path, uri: str, on_run: Callable[[str], None]) -> None:
        super().__init__(daemon=True, name="mlflow-forwarder")
        self.record, self.uri, self.on_run = record, uri, on_run
        self.opened, self.ended = threading.Event(), threading.Event()
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            sender = Sender(self.record, self.uri)
            self.on_run(sender.run_id)
            self.opened.set()
            while not self.ended.wait(2.0):
                sender.send_metrics()
            sender.finish()
        except Exception as error:  # a tracker's failure must never fail a stage; the caller warns and keeps the record
            self.error = error
        finally:
            self.opened.set()

    def close(self, patience_s: float) -> Exception | None:
        """Wait until all is sent; returns what went wrong, if anything did."""
        self.ended.set()
        self.join(patience_s)
        return TimeoutError(f"no answer within {patience_s:.0f} s") if self.is_alive() else self.error


def _kept(record: Path, project: Path) -> Path:
    return project / ".groundup" / "outbox" / record.parent.name


def keep_for_later(record: Path, project: Path) -> None:
    """Put a record that could not be sent into the outbox."""
    forget_kept(record, project)
    shutil.copytree(record, _kept(record, project))


def forget_kept(record: Path, project: Path) -> None:
    """Drop what an earlier, stopped attempt left in the outbox: this record went on and says more."""
    if _kept(record, project).exists():
        shutil.rmtree(_kept(record, project))


def sync(project: Path, uri: str) -> list[str]:
    """Send everything in the outbox. Returns the names of the records sent; raises what MLflow raises."""
    names = []
    for record in sorted((project / ".groundup" / "outbox").glob("*")):
        Sender(record, uri).finish()
        shutil.rmtree(record)
        names.append(record.name)
    return names

"""What reaches MLflow: all of a record, once, also when the tracker was away or the run was resumed."""

from __future__ import annotations

import json
import shutil
import socket
import time
from pathlib import Path

import pytest

from tasks import tracking
from tasks.workspace import Workspace


def make_record(folder: Path, points: int) -> Path:
    record = folder / "pretrain-abc" / "record"
    record.mkdir(parents=True)
    info = {
        "stage": "tracking-test",
        "params": {"steps": "3", "model.layers": "2"},
        "inputs": {"shards": "ab" * 32},
        "tags": {"workspace": "main", "fingerprint": "abcdef123456", "build": "b1"},
    }
    (record / "run.json").write_text(json.dumps(info))
    lines = [{"step": n, "time": 1_700_000_000_000 + n, "values": {"train/loss": 3.0 - n / 100}} for n in range(points)]
    (record / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (record / "artifacts").mkdir()
    (record / "artifacts" / "samples.txt").write_text("once upon a time")
    (record / "status").write_text("FINISHED")
    return record


@pytest.fixture
def uri(workspace: Workspace) -> str:
    found = tracking.tracking_uri(workspace.root)
    assert found
    return found


def test_a_record_arrives_whole(uri: str, tmp_path: Path) -> None:
    sender = tracking.Sender(make_record(tmp_path, 2500), uri)
    sender.finish()
    client = tracking.client(uri)
    run = client.get_run(sender.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"steps": "3", "model.layers": "2"}
    assert run.data.tags["build"] == "b1"
    assert [entry.dataset.name for entry in run.inputs.dataset_inputs] == ["shards"]
    history = client.get_metric_history(sender.run_id, "train/loss")
    assert [point.step for point in history] == list(range(2500))
    assert [entry.path for entry in client.list_artifacts(sender.run_id)] == ["samples.txt"]


def test_a_resumed_run_continues_and_repeats_nothing(uri: str, tmp_path: Path) -> None:
    record = make_record(tmp_path, 10)
    first = tracking.Sender(record, uri)
    first.send_metrics()
    metrics = record / "metrics.jsonl"
    lines = metrics.read_text().splitlines(keepends=True)
    metrics.write_text("".join(lines[:6]))  # killed; the resume point was at step 5
    second = tracking.Sender(record, uri)
    assert second.run_id == first.run_id
    with open(metrics, "a") as handle:
        handle.writelines(lines[6:])
        handle.write(json.dumps({"step": 10, "time": 1_700_000_000_010, "values": {"train/loss": 1.0}}) + "\n")
    second.finish()
    history = tracking.client(uri).get_metric_history(first.run_id, "train/loss")
    assert [point.step for point in history] == list(range(11))


def test_a_dead_tracker_costs_a_warning_and_the_record_is_sent_later(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    record = make_record(tmp_path, 5)
    forwarder = tracking.Forwarder(record, "http://127.0.0.1:9", lambda _: None)
    forwarder.start()
    began = time.monotonic()
    error = forwarder.close(60.0)
    assert error is not None
    assert time.monotonic() - began < 30
    tracking.keep_for_later(record, tmp_path)
    shutil.rmtree(record)
    assert tracking.sync(tmp_path, uri) == ["pretrain-abc"]
    assert not list((tmp_path / ".groundup" / "outbox").iterdir())


def test_a_tracker_that_never_answers_is_waited_for_no_longer_than_asked(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        forwarder = tracking.Forwarder(make_record(tmp_path, 5), f"http://127.0.0.1:{silent.getsockname()[1]}", print)
        forwarder.start()
        began = time.monotonic()
        assert isinstance(forwarder.close(0.5), TimeoutError)
        assert time.monotonic() - began < 5


def test_a_record_that_went_on_is_not_kept_as_it_was_when_it_stopped(tmp_path: Path) -> None:
    record = make_record(tmp_path, 5)
    tracking.keep_for_later(record, tmp_path)
    tracking.keep_for_later(record, tmp_path)
    tracking.forget_kept(record, tmp_path)
    tracking.forget_kept(record, tmp_path)
    assert not list((tmp_path / ".groundup" / "outbox").iterdir())


def test_links_open_the_charts_and_not_an_empty_page() -> None:
    link = tracking.charts_link("http://127.0.0.1:5000", "3")
    assert link == "http://127.0.0.1:5000/#/experiments/3/runs?compareRunsMode=CHART&workflowType=machine_learning"

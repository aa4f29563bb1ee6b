"""Secrets stand in the environment and appear nowhere else: not in a log, a run, a report or a refusal."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from apps.report import write_report
from deployments import notices
from llm_core.contract import BadInput
from tasks import experiments, params, secrets, tracking

PLANTED = {
    name: f"planted-{name.lower().replace('_', '-')}-7f3a"
    for name in ("GROUNDUP_API_KEY", "GROUNDUP_CHAT_PASSWORD", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY",
                 "AWS_SESSION_TOKEN", "PREFECT_API_AUTH_STRING", "MLFLOW_TRACKING_PASSWORD")
}  # fmt: skip
SECRET = "hunter2-planted"


def files_with(folder: Path, words: list[str]) -> list[str]:
    """Every file below a folder, links left out, that holds one of the words."""
    found = []
    for path in folder.rglob("*"):
        if path.is_file() and not any(part.is_symlink() for part in (path, *path.parents) if folder in part.parents):
            data = path.read_bytes()
            found += [f"{path}: {word}" for word in words if word.encode() in data]
    return found


def test_what_is_planted_in_the_environment_is_found_nowhere(root: Path, tmp_path: Path) -> None:
    folder, tracker = tmp_path / "project", tmp_path / "tracker"
    tracker.mkdir()
    small = {"acquire": {"sources": [{"kind": "problems", "count": 50}]}}
    tiny = params.overlay(params.read(root / "params.yaml"), params.read(root / "presets" / "tiny.yaml"))
    space = experiments.make_workspace(
        root, folder, params.dump(params.overlay(tiny, small)), cache=folder / ".dvc" / "cache"
    )
    environment = os.environ | PLANTED | {
        "MLFLOW_TRACKING_URI": f"sqlite:///{tracker / 'mlflow.db'}", "GROUNDUP_EVENTS": str(tmp_path / "events.jsonl"),
        "HF_ENDPOINT": f"https://me:{SECRET}@hub.example",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "tasks.run", "acquire"], cwd=folder, env=environment, capture_output=True, text=True
    )
    (tmp_path / "output.log").write_text(done.stdout + done.stderr)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (space.read_report("acquire") or {})["run"]["mlflow_run_id"], "the run is in MLflow"
    page = write_report(space)
    assert page.is_file()
    assert (tracker / "mlflow.db").stat().st_size > 10_000
    planted = [*PLANTED.values(), SECRET]
    (tmp_path / "control").write_text(planted[0])
    assert files_with(tmp_path, planted) == [f"{tmp_path / 'control'}: {planted[0]}"], "the search itself finds it"


@pytest.mark.parametrize(
    "source",
    [
        {"kind": "common_crawl", "name": "a", "crawl": "CC", "prefix": f"https://me:{SECRET}@mirror.example"},
        {"kind": "web", "name": "a", "start": [f"http://{SECRET}@a.example/"], "contact": "me@a.example"},
        {"kind": "wikipedia", "name": "a", "dump": f"https://:{SECRET}@mirror.example/d.bz2"},
        {"kind": "huggingface", "name": "a", "path": "x/y", "token": SECRET},
        {"kind": "huggingface", "name": "a", "path": "x/y", "revision": "hf_" + SECRET.replace("-", "x") * 3},
        {"kind": "huggingface", "name": "a", "path": "x/y", "columns": {"api_key": SECRET}},
    ],
)
def test_a_setting_that_carries_a_secret_is_refused_without_repeating_it(source: dict[str, object]) -> None:
    with pytest.raises(BadInput) as caught:
        params.check({"acquire": {"sources": [source]}}, "params.yaml")
    assert "secrets must stand in the environment" in str(caught.value)
    assert str(caught.value).startswith("params.yaml: acquire.sources.0.")
    assert SECRET not in str(caught.value)
    assert SECRET.replace("-", "x") not in str(caught.value)


def test_usual_settings_are_taken() -> None:
    sources = [
        {"kind": "web", "name": "a", "start": ["http://a.example/~me/x?y=a@b"], "contact": "me@a.example"},
        {"kind": "files", "name": "b", "paths": ["notes/a@b.txt", "s3://bucket/x"]},
    ]
    params.check({"acquire": {"sources": sources}}, "params.yaml")


def test_addresses_are_printed_without_what_stands_before_the_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:{SECRET}%21@127.0.0.1:9/x")
    monkeypatch.setenv(secrets.USER, "")
    monkeypatch.setenv(secrets.PASSWORD, "")
    uri = tracking.tracking_uri(tmp_path)
    assert uri == "http://127.0.0.1:9/x"
    assert (os.environ[secrets.USER], os.environ[secrets.PASSWORD]) == ("me", f"{SECRET}!"), "where MLflow looks for it"
    assert secrets.tracker_headers()["Authorization"].startswith("Basic ")
    assert SECRET not in tracking.charts_link(uri, "1")
    for plain in ("http://a.example/b@c", "sqlite:///x@y.db", "http://[::1]:80/"):
        assert secrets.shown(plain) == secrets.tracker(plain) == plain
    assert secrets.shown(f"https://me:{SECRET}@[::1]:80/a?b=c") == "https://[::1]:80/a?b=c"


@pytest.mark.parametrize("address", ["{}", "http://127.0.0.1:{}/", "http://127.0.0.1:9/a b{}", "nonsense://{}"])
def test_a_webhook_that_fails_does_not_tell_its_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setenv("HOOK", address.format(SECRET))
    monkeypatch.setenv("PREFECT_API_URL", f"http://me:{SECRET}@127.0.0.1:9/api")
    (tmp_path / "deployments").mkdir()
    (tmp_path / "deployments" / "notices.yaml").write_text("webhook: $HOOK\n")
    run = {"id": "1", "name": "a run", "run_count": 1, "end_time": "2020", "state": {"name": "Failed", "message": None}}
    said = notices.Notices(tmp_path)._tell(run)
    assert len(said) == 2
    assert "did not take it" in said[1]
    assert not files_with(tmp_path, [SECRET])
    assert SECRET not in " ".join(said)

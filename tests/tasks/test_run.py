"""What a stage tells on its way, and what of it is passed on."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from llm_core.contract import Note, Progress
from tasks import run


def test_progress_is_passed_on_now_and_then_and_always_at_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Notes all are. A second kind of work begins to be seen at once."""
    events, now = tmp_path / "events", 100.0
    monkeypatch.setenv("GROUNDUP_EVENTS", str(events))
    monkeypatch.setattr(time, "monotonic", lambda: now)
    sink = run.Sink(tmp_path)
    for done in range(1, 1001):
        now += run.PROGRESS_S / 100
        sink(Progress(done, 1000, "files", {}))
        if done % 250 == 0:
            sink(Note(f"{done} files"))
    sink(Progress(1, 50, "shards", {}))
    told = [json.loads(line) for line in events.read_text().splitlines()]
    progress = [(one["unit"], one["done"]) for one in told if one["event"] == "progress"]
    assert progress[0] == ("files", 1)
    assert progress[-2:] == [("files", 1000), ("shards", 1)]
    assert len(progress) in range(10, 15)
    assert [one["text"] for one in told if one["event"] == "note"] == [f"{n} files" for n in (250, 500, 750, 1000)]

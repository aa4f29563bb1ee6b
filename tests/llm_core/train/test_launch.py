"""A stage that asks for several ranks: torchrun as a child, events and errors relayed, stopped and resumed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llm_core.artifacts import read_manifest
from llm_core.contract import BadInput, Event, Metric, Note, Progress, Resumed, Stop
from llm_core.settings.pretrain import PretrainConfig
from llm_core.train import launch, pretrain

ROUNDING = 5e-3
"""What a last bit may grow to in 400 steps; `test_distributed.py` holds 12 steps to 1e-5."""
LINES = [
    {"kind": "Note", "text": "hello"},
    {"kind": "Progress", "done": 1, "total": 2, "unit": "steps", "figures": {"loss": 2.5}},
    {"kind": "Metric", "step": 1, "values": {"train/loss": 2.5}},
    {"kind": "Resumed", "step": 1},
]


def speaking(path: Path, lines: list[dict[str, Any]], code: int = 0) -> subprocess.Popen[bytes]:
    """A child that writes these lines, one of them in two halves, and ends with this code."""
    text = "".join(json.dumps(line) + "\n" for line in lines)
    path.touch()
    program = (
        "import sys\nhandle = open(sys.argv[1], 'a')\ntext = sys.argv[2]\n"
        "for part in (text[:40], text[40:]):\n    handle.write(part); handle.flush()\nsys.exit(int(sys.argv[3]))"
    )
    return subprocess.Popen([sys.executable, "-c", program, str(path), text, str(code)])


def test_events_are_relayed_as_they_were(tmp_path: Path) -> None:
    heard: list[Event] = []
    child = speaking(tmp_path / "events", LINES)
    assert launch._relay(tmp_path / "events", child, heard.append, 2) is None
    told = [event for event in heard if event != Progress(0, None, "ranks")]
    assert told == [
        Note("hello"), Progress(1, 2, "steps", {"loss": 2.5}), Metric(1, {"train/loss": 2.5}), Resumed(1)
    ]  # fmt: skip


@pytest.mark.parametrize(("bad_input", "error"), [(True, BadInput), (False, RuntimeError)])
def test_the_first_failure_of_a_rank_is_the_stages(bad_input: bool, error: type, tmp_path: Path) -> None:
    lines = [
        {"kind": "failed", "text": "passes: too few", "bad_input": bad_input},
        {"kind": "failed", "text": "connection closed by peer", "bad_input": False},
    ]
    failed = launch._relay(tmp_path / "events", speaking(tmp_path / "events", lines, 1), lambda _: None, 2)
    assert failed is not None
    with pytest.raises(error, match=r"^passes: too few$"):
        raise launch._error(failed)


def failure(text: str, **more: bool) -> dict[str, Any]:
    return {"kind": "failed", "text": text, "bad_input": False} | more


def test_ranks_that_began_again_have_not_failed(tmp_path: Path) -> None:
    """What another machine wrote of an earlier attempt may be read late."""
    heard: list[Event] = []
    (tmp_path / "events.1").write_text(json.dumps(failure("closed by peer", lost=True)) + "\n")
    lines = [failure("rank 1 stood still"), {"kind": "again", "text": "1 of 3 times"}, *LINES]
    child = speaking(tmp_path / "events", lines)
    assert launch._relay(tmp_path / "events", child, heard.append, 2) is None
    told = "a rank was lost (rank 1 stood still); all begin again from the last resume point, 1 of 3 times"
    assert Note(told) in heard


def test_why_a_rank_ended_counts_more_than_who_lost_it(tmp_path: Path) -> None:
    (tmp_path / "events.agent").write_text(json.dumps(failure("rank 2 was ended by SIGKILL", over=True)) + "\n")
    child = speaking(tmp_path / "events", [failure("closed by peer", lost=True)], 1)
    failed = launch._relay(tmp_path / "events", child, lambda _: None, 2)
    assert failed is not None
    assert str(launch._error(failed)) == "rank 2 was ended by SIGKILL"


def test_bad_input_is_not_tried_again(tmp_path: Path) -> None:
    (tmp_path / "events").write_text(json.dumps(failure("passes: too few", bad_input=True)) + "\n")
    child = subprocess.Popen([sys.executable, "-c", "import time\nfor _ in range(6000): time.sleep(0.1)"])
    failed = launch._relay(tmp_path / "events", child, lambda _: None, 2)
    assert child.returncode == -15
    with pytest.raises(BadInput, match="passes: too few"):
        raise launch._error(failed or {})


def test_a_listener_that_stops_ends_the_ranks(tmp_path: Path) -> None:
    def stop(_: Event) -> None:
        raise Stop

    (tmp_path / "events").write_text(json.dumps(LINES[0]) + "\n")
    child = subprocess.Popen([sys.executable, "-c", "import time\nfor _ in range(600): time.sleep(0.1)"])
    failed = launch._relay(tmp_path / "events", child, stop, 2)
    assert failed is not None
    assert isinstance(launch._error(failed), Stop)
    assert child.returncode == -15


def test_once_all_ranks_have_stopped_nobody_waits_for_torchrun(tmp_path: Path) -> None:
    (tmp_path / "events").write_text(2 * '{"kind": "stopped"}\n')
    child = subprocess.Popen([sys.executable, "-c", "import time\nfor _ in range(6000): time.sleep(0.1)"])
    assert launch._relay(tmp_path / "events", child, lambda _: None, 2) == {"kind": "stopped"}
    assert child.returncode == -9


def config(**changes: object) -> PretrainConfig:
    shape = {"layers": 1, "heads": 2, "width": 16, "context": 16}
    settings = {"model": shape, "steps": 400, "threads": 1, "evaluate_every": 200, "sample_tokens": 4, "passes": 2}
    return PretrainConfig.model_validate(settings | {"batch_sequences": 4} | changes)


def run(small_world: Any, place: Path, settings: PretrainConfig, stop_at: int = -1) -> tuple[Any, list[Event]]:
    events: list[Event] = []
    (place / "scratch").mkdir(parents=True, exist_ok=True)

    def emit(event: Event) -> None:
        events.append(event)
        if isinstance(event, Progress) and event.unit == "steps" and event.done >= stop_at > 0:
            raise Stop

    shards = small_world.shards
    report = pretrain.run(settings, shards=shards, out=place / "base", scratch=place / "scratch", emit=emit)
    return report, events


def test_a_stage_stopped_with_two_ranks_goes_on_with_one(
    small_world: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Started by torchrun, stopped by its listener, saved by both, finished alone: as if nothing had happened."""
    monkeypatch.setenv("PYTHONPATH", ":".join(sys.path))
    whole, _ = run(small_world, tmp_path / "whole", config())
    with pytest.raises(Stop):
        run(small_world, tmp_path / "cut", config(ranks=2), stop_at=3)
    points = sorted(path.name for path in (tmp_path / "cut" / "scratch").glob("step-*"))
    step = int(points[-1].removeprefix("step-"))
    assert 3 <= step < 400, "the ranks did not stop"
    assert not (tmp_path / "cut" / "base").exists()
    report, events = run(small_world, tmp_path / "cut", config())
    assert Resumed(step) in events
    assert report.metrics["loss"] == pytest.approx(whole.metrics["loss"], abs=ROUNDING)
    assert report.metrics["tokens_seen"] == whole.metrics["tokens_seen"]
    assert read_manifest(tmp_path / "cut" / "base", "base")


@pytest.mark.soak
def test_a_stage_with_two_sharded_ranks_makes_the_product(
    small_world: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", ":".join(sys.path))
    whole, _ = run(small_world, tmp_path / "whole", config())
    report, events = run(small_world, tmp_path / "ranks", config(ranks=2, parallel="fsdp"))
    assert report.metrics["loss"] == pytest.approx(whole.metrics["loss"], abs=ROUNDING)
    assert len(report.samples) == 4
    assert [event.done for event in events if isinstance(event, Progress) and event.unit == "steps"][-1] == 400
    assert read_manifest(tmp_path / "ranks" / "base", "base")


def test_ranks_that_cannot_share_the_passes_are_refused_before_any_starts(
    small_world: SimpleNamespace, tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match="3 passes cannot be shared by 2 ranks"):
        run(small_world, tmp_path, config(ranks=2, passes=3))
    assert not (tmp_path / "scratch" / "ranks").exists()

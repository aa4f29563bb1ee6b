"""What a stage keeps to go on with, but for products and training's resume points: a changed bit is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llm_core.artifacts import digest
from llm_core.contract import BadInput, Progress, Stop
from llm_core.data import acquire
from llm_core.data.sources import parts
from llm_core.evaluation import jobs
from llm_core.evaluation.rows import Row
from llm_core.feedback.align import _Looks
from llm_core.sealed import read_sealed, write_sealed
from llm_core.settings.acquire import AcquireConfig

CHANGED = "its bytes changed after it was written; delete"


def test_every_bit_of_a_record_counts(tmp_path: Path) -> None:
    value = {
        "rows": 12,
        "state": [3, "a \u00e9"],
        "share": 0.25,
        "none": None,
        "yes": True,
        "counts": {"7": 1, "12": []},
    }
    path = tmp_path / "state.json"
    write_sealed(path, value | {"counts": {7: 1, 12: []}})
    good = path.read_bytes()
    assert read_sealed(path) == value
    believed = 0
    for place in range(len(good) * 8):
        changed = bytearray(good)
        changed[place // 8] ^= 1 << place % 8
        path.write_bytes(changed)
        try:
            found = read_sealed(path)
        except BadInput:
            continue
        assert found == value, "another value was believed"
        believed += 1
    assert believed < len(good) // 4, "only white space may change unnoticed"
    for end in range(0, len(good) - 1, 7):
        path.write_bytes(good[:end])
        with pytest.raises(BadInput, match=CHANGED):
            read_sealed(path)


def test_an_outcome_of_an_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[Path], None]
) -> None:
    places = jobs.Places(tmp_path, tmp_path, tmp_path, tmp_path)
    asked = [jobs.Job(task, "chat", tmp_path, places) for task in ("one", "two")]
    done: list[str] = []

    def perform(_: Any, some: list[jobs.Job], **__: Any) -> list[jobs.Outcome]:
        done.extend(job.task for job in some)
        rows = [Row("chat", job.task, "greedy", "1", "What?", "Nothing.", 0.5) for job in some]
        return [jobs.Outcome(job.task, "chat", [row], {"share": 0.5}) for job, row in zip(some, rows, strict=True)]

    def run() -> list[jobs.Outcome]:
        return jobs.run_jobs(asked, seconds=1, kept=tmp_path, told=lambda *_: None)

    monkeypatch.setattr(jobs, "isolated", perform)
    found = run()
    assert (run(), done) == (found, ["one", "two"])
    victim = sorted(tmp_path.glob("*.json"))[0]
    damage(victim)
    with pytest.raises(BadInput, match=CHANGED) as caught:
        run()
    assert str(victim) in str(caught.value)
    victim.unlink()
    assert run() == found
    assert len(done) == 3


def test_the_answers_that_alignment_shows(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    looks = _Looks(tmp_path, lambda _: None)
    write_sealed(tmp_path / "answers-00000003.json", [{"model": "step 3", "prompt": "What?", "text": "This."}])
    assert [row["text"] for row in looks.rows()] == ["This."]
    damage(tmp_path / "answers-00000003.json")
    with pytest.raises(BadInput, match=CHANGED):
        looks.rows()


@pytest.mark.parametrize("victim", ["state.json", "000000.parquet"])
def test_the_parts_of_a_dataset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[Path], None], victim: str
) -> None:
    monkeypatch.setattr(parts, "PART_ROWS", 1_000)
    table = pa.table({"text": [f"A document about the number {number}." for number in range(5_000)]})
    pq.write_table(table, tmp_path / "rows.parquet")
    source = {"kind": "files", "name": "x", "paths": [str(tmp_path / "rows.parquet")]}
    config = AcquireConfig.model_validate({"sources": [source], "store": str(tmp_path / "store")})

    def stop(event: Any) -> None:
        if isinstance(event, Progress) and event.done >= 2_500:
            raise Stop

    def run(name: str, emit: Callable[[Any], None] = lambda _: None) -> Path:
        acquire.run(config, out=tmp_path / name / "raw", scratch=tmp_path / name / "scratch", emit=emit)
        return tmp_path / name / "raw"

    with pytest.raises(Stop):
        run("disturbed", stop)
    (path,) = (tmp_path / "disturbed" / "scratch").rglob(victim)
    damage(path)
    with pytest.raises(BadInput, match=CHANGED) as caught:
        run("disturbed")
    assert str(path) in str(caught.value)
    assert not (tmp_path / "disturbed" / "raw").exists()
    (state,) = (tmp_path / "disturbed" / "scratch").rglob("state.json")
    state.unlink()  # as the sentence says
    assert digest(run("disturbed")) == digest(run("calm"))

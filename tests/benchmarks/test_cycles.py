"""What judges an hour of cycles: growth is found where there is some, and nowhere else."""

from __future__ import annotations

import os
import random
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from benchmarks import cycles
from benchmarks.cycles import Cycle, Site, growing


def hour(count: int = 20, **rates: float) -> list[Cycle]:
    """So many cycles with noise; `rates` are MB that something grows by in each."""
    draw = random.Random(1)
    memory, disk = (
        {"prefect": 200.0, "mlflow": 400.0, "chat": 300.0},
        dict.fromkeys((*cycles.FLAT, *cycles.RECORDS), 20.0),
    )
    found = []
    for number in range(count):
        rest = 60.0 if number == 0 else 0.0  # what is loaded on first use stays
        found.append(
            Cycle(
                60.0,
                {name: mb + draw.uniform(-9, 9) - rest + number * rates.get(name, 0.0) for name, mb in memory.items()},
                {name: mb + draw.uniform(0, 1) + number * rates.get(name, 0.0) for name, mb in disk.items()},
            )
        )
    return found


def test_what_stays_and_what_is_recorded_may_pass() -> None:
    assert growing(hour()) == []
    assert growing(hour(MLflow=6.0, Prefect=1.0)) == [], "a run more a cycle"
    assert growing(hour(3)) == []


def test_a_leak_is_named() -> None:
    for name in ("prefect", "chat", "cache", "products"):
        (said,) = growing(hour(**{name: 12.0}))
        assert name in said
        assert "MB more after 15 cycles" in said


def test_records_that_grow_faster_and_faster_are_named() -> None:
    found = hour(MLflow=2.0)
    for number, one in enumerate(found):
        one.disk["MLflow"] += number * number
    (said,) = growing(found)
    assert "disk of MLflow" in said
    assert cycles.facts(found)["growing"] == [said]


def test_one_bad_measurement_is_no_growth() -> None:
    found = hour()
    found[-1].memory["prefect"] = 5_000.0
    assert growing(found) == []


def test_a_file_with_two_names_counts_once(tmp_path: Path) -> None:
    for folder in ("data", ".dvc/cache", ".run/mlflow"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "data" / "rows").write_bytes(bytes(3_000_000))
    os.link(tmp_path / "data" / "rows", tmp_path / ".dvc" / "cache" / "object")
    (tmp_path / ".run" / "mlflow" / "db").write_bytes(bytes(1_000_000))
    (tmp_path / "params.yaml").write_bytes(bytes(500_000))
    found = cycles.disk(tmp_path)
    assert {name: mb for name, mb in found.items() if mb} == {"products": 3.0, "MLflow": 1.0, "the rest": 0.5}


def test_a_page_that_was_written_again_is_seen(tmp_path: Path) -> None:
    with Site(tmp_path).served() as site:
        with urllib.request.urlopen(site.url) as answer:
            seen, text = answer.headers["Last-Modified"], answer.read().decode()
        assert text.count("<a href") == cycles.PAGES - 1
        unchanged = urllib.request.Request(site.url, headers={"If-Modified-Since": seen})
        with pytest.raises(urllib.error.HTTPError, match="304"):
            urllib.request.urlopen(unchanged)
        site.write(0)
        with urllib.request.urlopen(unchanged) as answer:
            assert answer.read().decode() != text

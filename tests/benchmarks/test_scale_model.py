"""The plan of docs/scale.md: its tables come from the results, and the lines say what they should."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)  # benchmarks is no installed package


def results(slope: float = 1e-3) -> dict[str, Any]:
    """Results of all jobs as `measure` leaves them; `slope`: the driver's memory for each document, MB."""
    from benchmarks import scale_jobs, scale_model

    def job(name: str) -> dict[str, Any]:
        quantities = (*scale_model.QUANTITIES, *scale_model.PARTS)
        lines = {quantity: {"start": 2.0, "unit": 1e-6} for quantity in quantities}
        lines["driver_peak_mb"] = {"start": 100.0, "unit": slope}
        rows = [
            {"quantity": quantity, "times": times, "predicted": 1.1, "measured": 1.0, "off": 0.1}
            for quantity in scale_model.QUANTITIES
            for times in scale_model.CHECK
        ]
        return {
            "unit": scale_jobs.UNITS[name],
            "lines": lines,
            "medians": {"16x": {"units": 1_000.0}},
            "checks": rows,
            "extras": {"warc_bytes": 3e7, "text_bytes": 5e6, "tokens": 250.0, "pieces": 100.0},
            "where": {"device": "a machine", "load_average": [0.5, 0, 0], "commit": "0123456789abcdef"},
        }

    return {name: job(name) for name in scale_jobs.JOBS}


def test_a_line_goes_through_what_lies_on_one() -> None:
    from benchmarks.scale_model import at, line

    found = line([10, 100, 200], [7, 52, 102])
    assert found == pytest.approx((2.0, 0.5))
    assert at(found, 1_600) == pytest.approx(802)


def test_a_line_never_falls_nor_begins_below_nothing() -> None:
    from benchmarks.scale_model import line

    assert line([1, 2, 3], [10, 9, 8])[1] == 0
    assert line([1, 2, 3], [0.5, 2, 3.5])[0] == 0
    assert line([1, 2, 3], [0, 0, 0]) == (0, 0)


def test_noise_of_a_large_run_does_not_drown_a_small_one() -> None:
    from benchmarks.scale_model import line

    rng = np.random.default_rng(1)
    units = np.array([1.0, 10.0, 1_000.0])
    start, slope = line(units, (5 + 2 * units) * rng.normal(1, 0.02, 3))
    assert abs(start / 5 - 1) < 0.15
    assert abs(slope / 2 - 1) < 0.1


def test_tables_follow_the_results() -> None:
    from benchmarks import scale_model, scale_plan

    page = "".join(f"{scale_model.MARK.format(n)}STALE{scale_model.END.format(n)}\n" for n in scale_plan.PLACES)
    told = scale_model.filled(page, results())
    assert "STALE" not in told
    assert scale_model.filled(told, results()) == told
    assert "+10.0%" in told
    assert "100 TB of WARC" in told
    assert scale_model.filled(told, results(2e-3)) != told
    with pytest.raises(ValueError, match="lacks the markers"):
        scale_model.filled("no markers", results())


def test_a_part_of_the_results_is_no_plan() -> None:
    from benchmarks import scale_model, scale_plan

    page = "".join(f"{scale_model.MARK.format(n)}STALE{scale_model.END.format(n)}\n" for n in scale_plan.PLACES)
    some = {name: found for name, found in results().items() if name != "clean"}
    assert "not measured yet" in scale_model.filled(page, some)


def test_what_is_needed_grows_with_the_work_and_breaks_where_the_driver_is_full() -> None:
    from benchmarks import scale_plan

    small, large = scale_plan.needs(results(), 1e12), scale_plan.needs(results(), 1e14)
    for few, many in zip(small, large, strict=True):
        assert many.driver_s > 50 * few.driver_s
        assert many.out_bytes == pytest.approx(100 * few.out_bytes)
    assert small[1].pieces == pytest.approx(0.1 * 1e12 * scale_plan.CRAWL["pages"] / scale_plan.CRAWL["bytes"])
    pages = 1e12 * scale_plan.CRAWL["pages"] / scale_plan.CRAWL["bytes"]
    assert small[1].driver_memory == pytest.approx(1e6 * (100 + 1e-3 * pages))
    at_one, at_two = (next(row for row in scale_plan.breaks(results(s)) if "memory" in row[1]) for s in (1e-3, 2e-3))
    full = (scale_plan.MACHINE.memory / 1e6 - 100) / 1e-3
    assert f"{full:.2g} pages" in at_one[2]
    assert f"{full / 2:.2g} pages" in at_two[2]


def test_training_takes_what_its_flops_say() -> None:
    from benchmarks import scale_plan

    few, many = scale_plan.training(2e9), scale_plan.training(1e13)
    assert few.parameters == pytest.approx(1e8, rel=0.2)
    assert many.parameters == pytest.approx(8e9, rel=0.2)
    assert many.flops == pytest.approx(6 * many.parameters * 1e13, rel=0.3)
    assert 1e5 < many.gpu_hours < 1e6, "Llama 3's 8 billion parameters took 1.46 million on 15 trillion tokens"
    assert many.gpus * scale_plan.TRAINING_DAYS * 24 >= many.gpu_hours


def test_the_chapter_is_up_to_date() -> None:
    command = [sys.executable, "-m", "benchmarks.scale_model", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="a process that adopts what is left behind: Linux alone")
def test_a_job_is_measured_with_all_its_processes(tmp_path: Path) -> None:
    """The smallest job there is. Who measures waits for all its children, so that is a process of its own too."""
    code = "import json, sys; from pathlib import Path; from benchmarks import scale_jobs; "
    code += "print(json.dumps(scale_jobs.run('decide', Path(sys.argv[1]), 0.005)))"
    told = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, check=True)
    found = json.loads(told.stdout.splitlines()[-1])
    assert found["units"] == 1_000
    assert 0 < found["driver_cpu_s"] < 60
    assert 20 < found["driver_peak_mb"] < 2_000
    assert 224 * 1_000 + 224 * 900 < found["scratch_bytes"] <= 448 * 1_000, "signatures, and keys of 14 bands"
    assert found["kept"] < 830, "one in five is a near copy"

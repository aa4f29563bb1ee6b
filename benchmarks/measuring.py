"""What the scripts of this folder share: where and on what a figure was measured, and where it is kept."""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from llm_core import artifacts
from tasks import record

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def where(project: Path = ROOT) -> dict[str, Any]:
    """The project's code, the machine and how busy it is now: without them a figure says nothing."""
    commit, difference = record.code_state(project)
    return {
        "commit": commit,
        "code_differs_from_commit": bool(difference),
        "device": f"{_processor()}, {record.device()}",
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "versions": record.versions(),
        "measured": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.is_file() else []
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "processor unknown"
    )


def seconds_of(call: Callable[[], object]) -> float:
    """Wall-clock seconds of one call."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def spread(seconds: list[float]) -> dict[str, Any]:
    """Repeated timings as their median, with all of them beside it."""
    return {"median_s": round(statistics.median(seconds), 3), "all_s": [round(value, 3) for value in seconds]}


def save(name: str, parts: dict[str, Any], folder: Path = RESULTS) -> Path:
    """Lay the parts that were measured now over those of benchmarks/results/<name>.json; its path."""
    path = folder / f"{name}.json"
    old = json.loads(path.read_text()) if path.is_file() else {}
    folder.mkdir(parents=True, exist_ok=True)
    artifacts.write_atomic(path, artifacts.dump_json(old | parts))
    return path


def results_of(name: str, folder: Path = RESULTS) -> dict[str, Any]:
    """The parts of benchmarks/results/<name>.json; empty if nothing was measured."""
    path = folder / f"{name}.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    return found

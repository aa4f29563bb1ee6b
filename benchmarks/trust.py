"""How far the pipeline can be trusted: kills by both doors, faults, fuzzing, long use; benchmarks/results/trust.json.

    python -m benchmarks.trust                        everything; no tour of kills begins after ten minutes
    python -m benchmarks.trust --only kills --kills 60 --minutes 60
    python -m benchmarks.trust --only tests           what tests/trust, tests/security and tests/fuzz count
    python -m benchmarks.trust --only cycles --minutes 60    refresh, build, vote: memory and disk stay flat

Kills: the harness of benchmarks/killing.py, on a copy of the code, so that editing does not disturb it. Tests: their
JUnit report, by file, with the counts that they print as `record_property`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections import defaultdict
from pathlib import Path
from typing import Any

from benchmarks import cycles, killing, measuring
from deployments import servers

PARTS = ("kills", "tests", "cycles")
SUITES = ("trust", "security", "fuzz")


def kills(asked: argparse.Namespace) -> dict[str, Any]:
    """The kill harness in a temporary folder, with Prefect and MLflow servers of its own; saved after every tour."""
    with tempfile.TemporaryDirectory(prefix="groundup-trust-") as name:
        folder = Path(name).resolve()
        (folder / "project").mkdir()
        project = killing.copy_code(measuring.ROOT, folder / "project")
        for variable in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI", "PREFECT_HOME"):
            os.environ.pop(variable, None)
        began = time.monotonic()

        def saved(found: dict[str, Any]) -> None:
            told = {"asked_for": asked.kills, "seed": asked.seed, "seconds": round(time.monotonic() - began, 1)}
            measuring.save("trust", {"kills": found | told | {"where": measuring.where()}}, asked.results)
            print(killing.tell(found | told), flush=True)

        try:
            servers.ensure(project)
            return killing.harness(
                project,
                folder,
                kills=asked.kills,
                seed=asked.seed,
                per_tour=asked.per_tour,
                side_by_side=asked.side_by_side,
                until=began + 60 * asked.minutes,
                saved=saved,
            )
        finally:
            servers.stop(project)


def tests() -> dict[str, Any]:
    """Outcomes of the suites that prove docs/trust.md, by file, and the counts that they report."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="groundup-trust-") as name:
        for suite in SUITES:
            folder, report = measuring.ROOT / "tests" / suite, Path(name) / f"{suite}.xml"
            if not folder.is_dir():
                continue
            command = [sys.executable, "-m", "pytest", "-q", "-m", "not soak", f"--junit-xml={report}", str(folder)]
            ended = subprocess.run(command, cwd=measuring.ROOT).returncode
            found[suite] = {"exit_code": ended, **_counted(report)}
    return found


def _counted(report: Path) -> dict[str, Any]:
    files: dict[str, dict[str, int]] = defaultdict(lambda: {"passed": 0, "failed": 0, "skipped": 0})
    properties: dict[str, Any] = {}
    for case in ET.parse(report).iter("testcase"):
        tags = {child.tag for child in case}
        state = "failed" if tags & {"failure", "error"} else "skipped" if "skipped" in tags else "passed"
        files[case.get("classname", "").replace(".", "/")][state] += 1
        for one in case.iter("property"):
            properties[one.get("name", "")] = _number(one.get("value", ""))
    total = {state: sum(counts[state] for counts in files.values()) for state in ("passed", "failed", "skipped")}
    return {"total": total, "files": dict(files), "counts": properties}


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def main() -> None:
    """Measure and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=PARTS)
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument(
        "--minutes", type=float, default=10, help="begin no tour of kills, and no cycle, after this time"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--per-tour", type=int, default=18)
    parser.add_argument("--side-by-side", type=int, default=2, help="tours at a time")
    parser.add_argument("--results", type=Path, default=measuring.RESULTS)
    asked = parser.parse_args()
    if asked.only in (None, "kills"):
        kills(asked)
    if asked.only in (None, "tests"):
        measuring.save("trust", {"tests": tests() | {"where": measuring.where()}}, asked.results)
    if asked.only in (None, "cycles"):
        with tempfile.TemporaryDirectory(prefix="groundup-trust-") as name:
            found = cycles.facts(cycles.run(measuring.ROOT, Path(name).resolve(), minutes=asked.minutes))
        measuring.save("trust", {"cycles": found | {"where": measuring.where()}}, asked.results)
        print(found)


if __name__ == "__main__":
    main()

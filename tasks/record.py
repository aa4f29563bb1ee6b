"""What is written down about a run of a stage: settings, inputs, code and versions before it, its report after it."""

from __future__ import annotations

import json
import os
import platform
import resource
import subprocess
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from llm_core import artifacts
from llm_core.contract import Config, Report
from llm_core.pipeline import Stage
from tasks import plots
from tasks.dvcfile import losses_path
from tasks.workspace import Workspace

REFRESH = "GROUNDUP_REFRESH"
"""Environment variable: the stage that asks its sources again, whatever its settings say."""
PACKAGES = (
    "torch", "prefect", "mlflow", "dvc", "datasets", "beautifulsoup4", "tiktoken", "tokenizers",
    "trafilatura", "scrapy", "numpy", "pyarrow",
)  # fmt: skip


def describe(
    space: Workspace, stage: Stage, config: Config, inputs: Mapping[str, str], fingerprint: str
) -> dict[str, Any]:
    """The record of a run: `params` and `tags` are flat, `inputs` name their digests, `code_diff` is text."""
    commit, diff = code_state(space.project)
    return {
        "stage": stage.verb,
        "params": flatten(config.model_dump(mode="json")),
        "inputs": dict(inputs),
        "tags": {
            "build": os.environ.get("GROUNDUP_BUILD", ""),
            "workspace": space.name,
            "fingerprint": fingerprint,
            "git_commit": commit,
            "code_differs_from_commit": str(bool(diff)).lower(),
            "device": device(),
        },
        "versions": versions(),
        "code_diff": diff,
    }


def code_state(project: Path) -> tuple[str, str]:
    """The git commit, and how the tracked files differ from it (dvc.lock left out). Empty texts outside git."""
    commit = _git(project, "rev-parse", "HEAD")
    return commit.strip(), _git(project, "diff", "HEAD", "--", ".", ":(exclude)dvc.lock") if commit else ""


def _git(project: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(project), *arguments], capture_output=True, text=True, timeout=30, errors="replace"
        )
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that make products."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "absent"
    return found


def device() -> str:
    """Processor and cores, and an NVIDIA card's presence, found without importing torch."""
    gpu = " + NVIDIA GPU" if Path("/proc/driver/nvidia/version").exists() else ""
    return f"{platform.machine()}, {os.cpu_count()} cores{gpu}"


def flatten(value: Any, prefix: str = "") -> dict[str, str]:
    """Nested settings as `a.b.0.c` keys with text values."""
    if isinstance(value, Mapping):
        items: list[tuple[str, Any]] = [(str(key), inner) for key, inner in value.items()]
    elif isinstance(value, list) and any(isinstance(inner, Mapping | list) for inner in value):
        items = [(str(index), inner) for index, inner in enumerate(value)]
    else:
        return {prefix: str(value)}
    flat: dict[str, str] = {}
    for key, inner in items:
        flat |= flatten(inner, f"{prefix}.{key}" if prefix else key)
    return flat


def seconds_spent(folder: Path) -> float:
    """Seconds that earlier, interrupted attempts at this work took."""
    path = folder / "seconds"
    return float(path.read_text()) if path.is_file() else 0.0


def write_report(
    space: Workspace, row: Stage, report: Report, info: Mapping[str, Any], folder: Path, seconds: float
) -> None:
    """Write the stage's report and the files MLflow keeps; the final figures join metrics.jsonl as `final/<name>`."""
    peaks = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    sent = folder / "sent.json"
    content = {
        "stage": row.verb,
        "metrics": dict(report.metrics),
        "tables": {name: [dict(line) for line in table] for name, table in report.tables.items()},
        "samples": [dict(sample) for sample in report.samples],
        "curves": plots.read_curves(folder / "metrics.jsonl"),
        "inputs": info["inputs"],
        "product": artifacts.digest(space.product(row.makes)),
        "params": info["params"],
        "versions": info["versions"],
        "run": {
            "mlflow_run_id": json.loads(sent.read_text())["run_id"] if sent.is_file() else None,
            "ended": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "seconds": round(seconds, 3),
            "cpu_seconds": round(sum(u.ru_utime + u.ru_stime for u in usage), 3),
            "peak_rss_mb": round(max(peaks) / 1024, 1),
            "device": info["tags"]["device"],
            "git_commit": info["tags"]["git_commit"],
            "build": info["tags"]["build"],
        },
    }
    final = {f"final/{name}": float(value) for name, value in report.metrics.items()}
    line = {"step": 0, "time": time.time_ns() // 1_000_000, "values": final}
    with open(folder / "metrics.jsonl", "a") as handle:
        handle.write(json.dumps(line) + "\n")
    space.report(row.verb).parent.mkdir(exist_ok=True)
    artifacts.write_atomic(space.report(row.verb), artifacts.dump_json(content))
    if row.verb in plots.WITH_LOSSES:
        path = space.root / losses_path(row.verb)
        path.parent.mkdir(exist_ok=True)
        artifacts.write_atomic(path, artifacts.dump_json(plots.loss_rows(content["curves"])))
    plots.write_artifacts(folder / "artifacts", content, info, space.root / "dvc.lock")

"""What running from Prefect's page costs: `python -m benchmarks.operate [--rounds 3]`.

idle      memory of the whole stack when nothing runs: the sum of PSS over every process, and each server's share
click     from creating a run, as the page's button does, to its first stage at work: the median
noop      a build with nothing to do, from the click to its end: the median, beside `groundup run` in the same project
worker    a build that runs one stage (clean), from the click to its end, less the same by `groundup run`
cancel    from Cancel to the end of the training's last process: the median

A project of tiny size in a temporary folder, with servers of its own. Rounds alternate between the two ways.
Figures go to benchmarks/results/operate.json with the commit, versions, device and load they were measured on.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from benchmarks.main_job import groundup
from benchmarks.measuring import RESULTS, ROOT, save, seconds_of, spread, where
from deployments import servers
from tasks import experiments, params

PATIENCE_S = 900.0
ENDS = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


@contextmanager
def stack() -> Iterator[Path]:
    """A tiny project that is built once, with everything up; both are removed at the end."""
    folder = Path(tempfile.mkdtemp(prefix="groundup-"))
    tiny = params.overlay(params.read(ROOT / "params.yaml"), params.read(ROOT / "presets" / "tiny.yaml"))
    project = experiments.make_workspace(ROOT, folder / "project", params.dump(tiny), cache=folder / "cache").root
    try:
        groundup(project, "up")
        groundup(project, "run")
        yield project
    finally:
        groundup(project, "down")
        shutil.rmtree(folder)


def ask(project: Path, path: str, body: dict[str, Any] | None = None) -> Any:
    """A call of Prefect's API, as its page makes it."""
    url = f"{servers.running(project)['prefect']}/api/{path}"
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(url, data, {"Content-Type": "application/json"})) as answer:
        return json.loads(answer.read() or "null")


def click(project: Path, parameters: dict[str, Any]) -> str:
    """Start a build; the run's id."""
    deployment = ask(project, "deployments/name/build/build")["id"]
    body = {"parameters": parameters, "state": {"type": "SCHEDULED"}}
    return str(ask(project, f"deployments/{deployment}/create_flow_run", body)["id"])


def until(reached: Callable[[], Any]) -> Any:
    """Wait for something true."""
    deadline = time.monotonic() + PATIENCE_S
    while not (found := reached()):
        if time.monotonic() > deadline:
            raise SystemExit(f"not within {PATIENCE_S:.0f} s")
        time.sleep(0.05)
    return found


def ended(project: Path, run: str, wanted: str = "COMPLETED") -> None:
    """Wait for a run's end; it must be the wanted one."""

    def state() -> str | None:
        found = str(ask(project, f"flow_runs/{run}")["state"]["type"])
        return found if found in ENDS else None

    if (found := until(state)) != wanted:
        raise SystemExit(f"run {run} ended as {found}")


def started(root: Path, verb: str, since: float) -> int | None:
    """The process of a stage that has begun since then."""
    events = root / ".groundup" / "events" / f"{verb}.jsonl"
    if not events.is_file() or events.stat().st_mtime < since:
        return None
    told = [json.loads(line) for line in events.read_text().splitlines(keepends=True) if line.endswith("\n")]
    return next((int(event["pid"]) for event in told if event["event"] == "started"), None)


def saved(root: Path) -> list[Path]:
    """Resume points of the training."""
    return [path for path in (root / ".groundup" / "scratch").glob("pretrain-*/*") if path.name != "record"]


def measure_idle(project: Path) -> dict[str, Any]:
    """PSS in MB of each server with its children."""
    shares = {}
    for file in sorted((project / ".run").glob("*.json")):
        if "pid" in (state := json.loads(file.read_text())):
            server = psutil.Process(state["pid"])
            family = [server, *server.children(recursive=True)]
            shares[file.stem] = round(sum(process.memory_full_info().pss for process in family) / 1e6, 1)
    return {"where": where(), "total_mb": round(sum(shares.values()), 1), "each_mb": shares}


def measure_click(project: Path, rounds: int) -> dict[str, Any]:
    """Click to a stage at work: the stage's own first sign of life, after Prefect, DVC and imports."""
    about, seconds = where(), []
    for _ in range(rounds):
        since, began = time.time(), time.perf_counter()
        run = click(project, {"stages": ["clean"], "force": ["clean"]})
        until(partial(started, project, "clean", since))
        seconds.append(time.perf_counter() - began)
        ended(project, run)
    return {"where": about, **spread(seconds)}


def measure_both(project: Path, rounds: int, parameters: dict[str, Any], *arguments: str) -> dict[str, Any]:
    """The same build by the worker and by the command, in turn; medians, and the median of the differences."""
    about = where()
    worker: list[float] = []
    command: list[float] = []
    for _ in range(rounds):
        worker.append(seconds_of(lambda: ended(project, click(project, parameters))))
        command.append(seconds_of(lambda: groundup(project, "run", *arguments)))
    more = [one - other for one, other in zip(worker, command, strict=True)]
    return {
        "where": about,
        "worker": spread(worker),
        "command": spread(command),
        "overhead_s": round(statistics.median(more), 3),
    }


def measure_cancel(project: Path, rounds: int) -> dict[str, Any]:
    """Cancel to the end of the training's process; each round goes on from what the one before saved."""
    about, seconds = where(), []
    parameters = {"settings": {"pretrain": {"steps": 100_000, "save_every_seconds": 1.0}}, "stages": ["pretrain"]}
    for _ in range(rounds):
        since = time.time()
        run = click(project, parameters)
        root = until(lambda: next((path.parent for path in (project / "runs").glob("*/dvc.yaml")), None))
        trainer = psutil.Process(until(partial(started, root, "pretrain", since)))
        until(partial(saved, root))
        began = time.perf_counter()
        ask(project, f"flow_runs/{run}/set_state", {"state": {"type": "CANCELLING"}, "force": True})
        psutil.wait_procs([trainer], timeout=PATIENCE_S)
        seconds.append(time.perf_counter() - began)
        ended(project, run, "CANCELLED")
    return {"where": about, **spread(seconds)}


def main() -> None:
    """Measure everything in one project."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON file")
    arguments = parser.parse_args()
    with stack() as project:
        found = {
            "idle": measure_idle(project),
            "click": measure_click(project, arguments.rounds),
            "noop": measure_both(project, arguments.rounds, {}),
            "worker": measure_both(
                project, arguments.rounds, {"stages": ["clean"], "force": ["clean"]}, "clean", "--force", "clean"
            ),
            "cancel": measure_cancel(project, arguments.rounds),
        }
    for part, figures in found.items():
        print(part, json.dumps({name: figure for name, figure in figures.items() if name != "where"}, indent=2))
    print(save("operate", found, arguments.results))


if __name__ == "__main__":
    main()

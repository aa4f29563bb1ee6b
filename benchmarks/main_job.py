"""What the main job costs and what comes out: `python -m benchmarks.main_job [--only job,noop,help]`.

job   `groundup run` from scratch in a fresh clone of HEAD, with servers of its own: wall clock, what of it was spent
      in stages and what around them, the largest process, and what the models learned
noop  `groundup run` again with nothing to do, servers up: the median of five (in the clone; without `job`, here)
help  `groundup --help`: the median of seven

Figures go to benchmarks/results/main_job.json, each part with the commit, versions, device and load it was measured on.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from benchmarks.measuring import RESULTS, ROOT, save, seconds_of, spread, where
from llm_core import artifacts
from llm_core.pipeline import VERBS
from tasks.workspace import Workspace

PARTS = ("job", "noop", "help")
OTHER_SERVERS = ("PREFECT_API_URL", "PREFECT_HOME", "MLFLOW_TRACKING_URI")
ALIKE_BETWEEN_RUNS = ("corpus", "shards", "base")


def groundup(project: Path, *arguments: str) -> str:
    """What `groundup` prints in a project, run with the project's own code. A failure shows what it said."""
    environment = {name: value for name, value in os.environ.items() if name not in OTHER_SERVERS}
    command = [sys.executable, "-m", "flows.cli", *arguments]
    done = subprocess.run(command, cwd=project, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"groundup {' '.join(arguments)}: exit code {done.returncode}")
    return done.stdout


@contextmanager
def fresh_clone(*, keep: bool) -> Iterator[Path]:
    """A clone of HEAD in a temporary folder. Its servers are stopped at the end, and it is removed unless kept."""
    folder = Path(tempfile.mkdtemp(prefix="groundup-"))
    project = folder / "project"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(project)], check=True)
    try:
        yield project
    finally:
        groundup(project, "down")
        if keep:
            print(f"kept: {project}")
        else:
            shutil.rmtree(folder)


def measure_job(project: Path) -> dict[str, Any]:
    """Run the job from scratch, servers and all; everything that is known of it then."""
    about = where(project)
    printed: list[str] = []
    wall = seconds_of(lambda: printed.append(groundup(project, "run")))
    space = Workspace.at(project)
    reports = {verb: space.read_report(verb) or {} for verb in (*VERBS, "promote")}
    stage_s = {verb: reports[verb]["run"]["seconds"] for verb in VERBS}
    waited_for = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    return {
        "where": about,
        "load_average_after": [round(load, 2) for load in os.getloadavg()],
        "wall_s": round(wall, 1),
        "stages_s": round(sum(stage_s.values()), 1),
        "around_stages_s": round(wall - sum(stage_s.values()), 1),
        "stage_s": stage_s,
        "peak_rss_mb": {"stages_and_flow": round(waited_for, 1), "servers": round(servers_peak_mb(project), 1)},
        "bits_per_byte": reports["pretrain"]["metrics"]["bits_per_byte"],
        "evaluate": reports["evaluate"]["metrics"],
        "accuracies": reports["evaluate"]["tables"].get("accuracies", []),
        "gate": {name: reports["promote"].get(name) for name in ("reason", "champion")},
        "printed": printed[0].strip().replace(str(project), "/home/you/groundup").splitlines(),
        "digests": {product: artifacts.digest(space.product(product)) for product in ALIKE_BETWEEN_RUNS},
    }


def servers_peak_mb(project: Path) -> float:
    """Peak resident memory of the largest process among the project's servers and their children."""
    peaks = [0.0]
    for state in sorted((project / ".run").glob("*.json")):
        server = psutil.Process(json.loads(state.read_text())["pid"])
        peaks += [_peak_mb(process.pid) for process in (server, *server.children(recursive=True))]
    return max(peaks)


def _peak_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), 0.0)


def measure_noop(project: Path) -> dict[str, Any]:
    """Five runs with nothing to do. Raises if there was something to do after all."""
    about, states = where(project), json.loads(groundup(project, "run", "--json"))["states"]
    if set(states.values()) != {"fresh"}:
        raise SystemExit(f"{project}: not everything was fresh ({states}); run it once, then measure")
    return {"where": about, **spread([seconds_of(lambda: groundup(project, "run", "--json")) for _ in range(5)])}


def measure_help() -> dict[str, Any]:
    """Seven times `groundup --help`, as a person starts it."""
    program = [str(Path(sys.executable).with_name("groundup")), "--help"]
    about = where()
    return {"where": about, **spread([seconds_of(lambda: subprocess.run(program, check=True, stdout=subprocess.DEVNULL))
                                      for _ in range(7)])}  # fmt: skip


def main() -> None:
    """Measure the parts that were asked for, cheapest first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PARTS), help="parts, separated by commas")
    parser.add_argument("--keep", action="store_true", help="do not remove the clone")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the JSON file")
    arguments = parser.parse_args()
    wanted = arguments.only.split(",")
    if unknown := sorted(set(wanted) - set(PARTS)):
        parser.error(f"no part {unknown[0]!r}; the parts are {', '.join(PARTS)}")
    found: dict[str, Any] = {"help": measure_help()} if "help" in wanted else {}
    if "job" in wanted:
        with fresh_clone(keep=arguments.keep) as project:
            found["job"] = measure_job(project)
            if "noop" in wanted:
                found["noop"] = measure_noop(project)
    elif "noop" in wanted:
        found["noop"] = measure_noop(ROOT)
    for part, figures in found.items():
        print(part, json.dumps({name: figure for name, figure in figures.items() if name != "where"}, indent=2))
    print(save("main_job", found, arguments.results))


if __name__ == "__main__":
    main()

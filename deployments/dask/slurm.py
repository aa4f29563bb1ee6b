"""`python -m deployments.dask.slurm [JOBS]`: a Dask scheduler here and its workers as Slurm jobs, until Ctrl-C.

Needs dask-jobqueue (`pip install dask-jobqueue`) and jobqueue.yaml beside this file. The first line that it prints is
the address for `groundup run --cluster`.
"""

from __future__ import annotations

import argparse
import shlex
import signal
from pathlib import Path
from typing import Any

import yaml

SETTINGS = Path(__file__).with_name("jobqueue.yaml")


def main() -> None:
    """Start the cluster, print its address, and end its jobs when this process is told to end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("jobs", nargs="?", type=int, default=4, help="Slurm jobs at most; as many as there is work for")
    parser.add_argument("--script", action="store_true", help="print the job script and end")
    options = parser.parse_args()

    from dask_jobqueue import SLURMCluster

    project = Path.cwd().resolve()
    with SLURMCluster(**settings(project)) as cluster:
        if options.script:
            print(cluster.job_script())
            return
        cluster.adapt(minimum_jobs=1, maximum_jobs=options.jobs)
        print(cluster.scheduler_address, flush=True)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: None)
        signal.pause()


def settings(project: Path) -> dict[str, Any]:
    """What one job is, from jobqueue.yaml, as arguments; jobs run in the folder `project` and import its code."""
    with open(SETTINGS) as file:
        values = yaml.safe_load(file)["jobqueue"]["slurm"]
    found = {name.replace("-", "_"): value for name, value in values.items()}
    found["job_script_prologue"] += [f"cd {shlex.quote(str(project))}", 'export PYTHONPATH="$PWD:${PYTHONPATH:-}"']
    return found


if __name__ == "__main__":
    main()

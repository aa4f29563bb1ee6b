"""Runs as a process of its own: `placed_flow.py data WORKSPACE` brings raw and corpus up to date as a build does;
`placed_flow.py slots SECONDS` holds a slot of the limit on GPUs and prints from when to when."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from prefect import flow

from llm_core.contract import BadInput
from tasks import gpus
from tasks.session import open_session
from tasks.stages import acquire, clean


@flow(name="data")
def data(workspace: str) -> None:
    """The first two stages."""
    with open_session(Path(workspace), ("clean",)) as run:
        clean(run, acquire(run))


def main(what: str, argument: str) -> int:
    """As the first lines of this file say."""
    try:
        if what == "data":
            data(argument)
        else:
            with gpus.slots(1, waits=lambda text: print(text, file=sys.stderr)):
                began = time.time()
                time.sleep(float(argument))
                print(began, time.time(), flush=True)
    except BadInput as error:
        print(f"bad input: {error}")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

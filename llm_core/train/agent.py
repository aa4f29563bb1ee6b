"""One machine's torchrun for a job of several ranks: `python -m llm_core.train.agent JOB.json [--host]`.

The machine that runs the stage is the host: the others find each other at its address. Each machine tells gloo which of
its addresses leads there; by default gloo takes that of the machine's own name, which on many systems is loopback.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous.api import RendezvousClosedError, RendezvousError

from llm_core.train.launch import MEET_SECONDS, Voice

CLOSED = 3
"""Exit code: the job's machines have given up, so there is nothing to join."""


def arguments(file: Path, job: Mapping[str, Any], *, host: bool, address: str) -> list[str]:
    """torchrun's command line for this machine's part of the job."""
    start = job["start"]
    meeting = f"is_host={int(host)},join_timeout={MEET_SECONDS},read_timeout={MEET_SECONDS}"
    several = ["--rdzv-conf", meeting, "--local-addr", address] if start["nodes"] > 1 else []
    return [
        "--nnodes", str(start["nodes"]), "--nproc-per-node", str(start["ranks"]), "--max-restarts",
        str(start["restarts"]), "--monitor-interval", "0.1", "--rdzv-backend", "c10d", "--rdzv-endpoint",
        job["endpoint"], "--rdzv-id", job["id"], *several, "-m", "llm_core.train.launch", str(file),
    ]  # fmt: skip


def way_to(endpoint: str) -> tuple[str, str]:
    """This machine's address on the way to `endpoint` (HOST:PORT), and the network interface that has it."""
    host, _, port = endpoint.rpartition(":")
    family, _, _, _, where = socket.getaddrinfo(host, int(port), type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect(where)  # sends nothing; it only asks for the route
        address = str(probe.getsockname()[0])
    for name, found in psutil.net_if_addrs().items():
        if any(each.address == address for each in found):
            return address, name
    return address, "lo"


def main(given: list[str]) -> int:
    """Start this machine's ranks and wait for them; the exit code."""
    from torch.distributed.run import parse_args, run

    file = Path(given[0])
    job = json.loads(file.read_text())
    address = ""
    if job["start"]["nodes"] > 1:
        address, interface = way_to(job["endpoint"])
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
        # Machines count restarts differently, and torch finds the ranks' addresses of an attempt by that number: in a
        # store that outlives attempts they would find old ones. So the first rank of each attempt has its own store.
        os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    voice = Voice(file.with_name("events.jsonl"), f"agent-{socket.gethostname()}-{os.getpid()}")
    try:
        run(parse_args(arguments(file, job, host="--host" in given, address=address)))  # type: ignore[no-untyped-call]
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        how = failure.signal_name() if failure.exitcode < 0 else f"code {failure.exitcode}"
        text = f"rank {rank} on {socket.gethostname()} (process {failure.pid}) was ended by {how}"
        lost = failure.exitcode >= 0  # a signal tells more than what its peers say of it
        voice.failed(text, lost=lost, over=True)
        return 1
    except RendezvousClosedError:
        return CLOSED
    except RendezvousError as error:
        machines = f"the {job['start']['nodes']} machines did not meet at {job['endpoint']} within {MEET_SECONDS} s"
        voice.failed(f"{machines}: is each of them started? ({type(error).__name__})", over=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

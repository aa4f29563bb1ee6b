"""Several ranks do what one does: same losses, same resume points; killed or stopped, they go on where they were."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from llm_core.contract import BadInput
from llm_core.train.distributed import Ranks

SCRIPT = Path(__file__).with_name("ranks_job.py")
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def job() -> ModuleType:
    spec = importlib.util.spec_from_file_location("ranks_job", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def torchrun(ranks: int, *arguments: object) -> list[str]:
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    return [*start, str(SCRIPT), *map(str, arguments)]


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}


def run(ranks: int, *arguments: object) -> None:
    done = subprocess.run(torchrun(ranks, *arguments), env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]


Losses = dict[str, dict[int, float]]


@pytest.fixture(scope="module")
def alone(job: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Losses:
    """What one process alone gets with each of the two models."""
    folder = tmp_path_factory.mktemp("alone")
    return {name: job.train(folder / name, Ranks(parallel=name))[0] for name in ("ddp", "fsdp")}  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    run(2, folder, "equal")
    return folder


def losses_of(folder: Path) -> dict[int, float]:
    return {int(step): loss for step, loss in json.loads((folder / "losses.json").read_text()).items()}


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_ranks_train_as_one_does(parallel: str, two: Path, alone: Losses) -> None:
    """Dropout, Muon, uneven shares: the losses of all steps agree, so all gradients and updates did."""
    assert losses_of(two / parallel) == pytest.approx(alone[parallel], abs=TOLERANCE)
    assert alone[parallel][1] - alone[parallel][12] > 0.05, "nothing was learnt, so nothing was compared"


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_what_two_ranks_saved_continues_on_one(parallel: str, two: Path, alone: Losses, job: ModuleType) -> None:
    """Stopped by a signal that only one rank got; the data go on in the same order."""
    assert json.loads((two / parallel / "points.json").read_text())[-1] == f"step-{job.STOP_AFTER:08d}"
    losses, _ = job.train(two / parallel / "stopped", Ranks(parallel=parallel))
    assert min(losses) == job.STOP_AFTER + 1
    assert losses == pytest.approx({step: alone[parallel][step] for step in losses}, abs=TOLERANCE)


@pytest.mark.parametrize("parallel", ["ddp", pytest.param("fsdp", marks=pytest.mark.soak)])
def test_two_ranks_killed_end_with_the_same_bytes(parallel: str, two: Path, tmp_path: Path) -> None:
    command = torchrun(2, tmp_path, "killed", parallel)
    child = subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert child.stdout is not None
    at = random.Random().randint(2, 9)
    for line in child.stdout:
        if int(line) >= at:
            break
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert not (tmp_path / "weights").exists()
    assert any(tmp_path.glob("step-*"))
    run(2, tmp_path, "killed", parallel)
    assert (tmp_path / "weights").read_bytes() == (two / parallel / "weights").read_bytes()


@pytest.mark.soak
def test_four_ranks_train_as_one_does(tmp_path: Path, alone: Losses) -> None:
    run(4, tmp_path, "equal")
    for parallel in ("ddp", "fsdp"):
        assert losses_of(tmp_path / parallel) == pytest.approx(alone[parallel], abs=TOLERANCE)


def test_passes_that_cannot_be_shared_are_refused() -> None:
    with pytest.raises(BadInput, match="passes: 3 passes cannot be shared by 2 ranks"):
        Ranks(0, 2).check(3)
    assert [list(Ranks(rank, 2).mine(range(4, 8))) for rank in range(2)] == [[4, 6], [5, 7]]


def test_alone_nothing_travels() -> None:
    alone = Ranks()
    assert alone.any(True, False) == [True, False]
    assert alone.share({"a": 1.5}) == {"a": 1.5}
    assert torch.equal(alone.sum_(torch.ones(2)), torch.ones(2))

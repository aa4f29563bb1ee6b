"""Two machines that train together, each with two ranks: in network namespaces of their own where root may make them.

Where it may not, both are on loopback. A machine is killed a rank, another stands still, another is slow.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from deployments import servers
from llm_core.contract import BadInput
from llm_core.train import agent, join, launch
from llm_core.train.distributed import Ranks

FOLDER = Path(__file__).parent
TOLERANCE = 1e-5


@dataclass(frozen=True)
class Machines:
    """How to run a command on each of two machines, and where they meet."""

    host: list[str] = field(default_factory=list)
    other: list[str] = field(default_factory=list)
    endpoint: str = ""


@pytest.fixture(scope="module")
def machines() -> Iterator[Machines]:
    """Two network namespaces joined by a cable, each with nothing else; or loopback."""
    names = [f"gu{os.getpid()}{letter}" for letter in "ab"]
    ends = [f"ve{os.getpid()}{letter}" for letter in "ab"]
    lines = [f"netns add {name}" for name in names]
    lines += [f"link add {ends[0]} netns {names[0]} type veth peer name {ends[1]} netns {names[1]}"]
    for number, (name, end) in enumerate(zip(names, ends, strict=True), 1):
        lines += [f"-n {name} addr add 10.77.0.{number}/24 dev {end}"]
        lines += [f"-n {name} link set {end} up", f"-n {name} link set lo up"]
    try:
        if shutil.which("ip") and all(not subprocess.run(["ip", *line.split()], capture_output=True).returncode
                                      for line in lines):  # fmt: skip
            yield Machines(*(["ip", "netns", "exec", name] for name in names), endpoint="10.77.0.1:29500")
        else:
            yield Machines(endpoint=f"127.0.0.1:{servers.free_port(0)}")
    finally:
        for name in names:
            if shutil.which("ip"):
                subprocess.run(["ip", "netns", "del", name], capture_output=True)


@dataclass
class Told:
    """What a training on two machines told."""

    lines: list[dict[str, Any]]
    other: str
    workspace: Path

    @property
    def points(self) -> Path:
        return self.workspace / ".groundup" / "scratch" / "nodes-0" / "points"

    @property
    def notes(self) -> list[str]:
        return [line["text"] for line in self.lines if line["kind"] == "Note"]

    @property
    def losses(self) -> dict[int, float]:
        """By step; those that were computed twice are those of the second time."""
        found = [line for line in self.lines if line["kind"] == "Metric" and "train/loss" in line["values"]]
        return {line["step"]: line["values"]["train/loss"] for line in found}


def environment(machines: Machines) -> dict[str, str]:
    path = os.pathsep.join([str(FOLDER), *sys.path])
    own = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", launch.RENDEZVOUS: machines.endpoint}
    return {name: value for name, value in os.environ.items() if name != "GLOO_SOCKET_IFNAME"} | own


def train(machines: Machines, workspace: Path, **settings: Any) -> Told:
    """Run the job on both machines; the other one joins by what it finds in the workspace."""
    workspace.mkdir()
    command = [*machines.other, sys.executable, "-m", "llm_core.train.join", str(workspace), "--once"]
    with open(workspace / "other.log", "w+") as log:
        other = subprocess.Popen(command, env=environment(machines), stdout=log, stderr=subprocess.STDOUT)
        try:
            command = [*machines.host, sys.executable, str(FOLDER / "nodes_job.py"), str(workspace)]
            host = subprocess.run(
                [*command, json.dumps(settings)], env=environment(machines), capture_output=True, text=True
            )
            other.wait(120)
        finally:
            if other.poll() is None:
                other.kill()
                other.wait()
        log.seek(0)
        told = log.read()
    lines = [json.loads(line) for line in host.stdout.splitlines() if line.startswith("{")]
    assert lines, host.stderr[-4000:] + told[-4000:]
    ended = lines[-1]["kind"] if lines else ""
    assert ended in ("report", "failed"), f"{lines[-1]}{host.stderr[-4000:]}{told[-4000:]}"
    return Told(lines, told, workspace)


@pytest.fixture(scope="module")
def job() -> ModuleType:
    spec = importlib.util.spec_from_file_location("ranks_job", FOLDER / "ranks_job.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def alone(job: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    losses: dict[int, float] = job.train(tmp_path_factory.mktemp("alone"), Ranks(parallel="fsdp"))[0]
    return losses


@pytest.fixture(scope="module")
def killed(machines: Machines, tmp_path_factory: pytest.TempPathFactory) -> Told:
    """HSDP on two machines, of which a rank is killed in step 6."""
    workspace = tmp_path_factory.mktemp("nodes") / "killed"
    return train(machines, workspace, parallel="hsdp", killed=3, restarts=2)


def test_two_machines_whose_rank_was_killed_train_as_one_process_does(killed: Told, alone: dict[int, float]) -> None:
    assert killed.losses == pytest.approx(alone, abs=TOLERANCE)
    assert alone[1] - alone[12] > 0.05, "nothing was learnt, so nothing was compared"
    assert any("a rank was lost" in note and "1 of 2 times" in note for note in killed.notes), killed.notes
    resumed = [line["step"] for line in killed.lines if line["kind"] == "Resumed"]
    assert resumed == [6], "the ranks went on from the resume point before the kill"
    assert "joins nodes_job at" in killed.other


def test_what_four_ranks_saved_in_parts_goes_on_with_one(
    killed: Told, alone: dict[int, float], job: ModuleType, tmp_path: Path
) -> None:
    shutil.copytree(killed.points / "step-00000004", tmp_path / "points" / "step-00000004")
    parts = sorted(path.name for path in (tmp_path / "points" / "step-00000004").iterdir())
    assert len(parts) > 2, f"nothing was spread: {parts}"
    assert all(name == "record.json" or name.endswith(".safetensors") for name in parts), "nothing is pickled"
    losses, _ = job.train(tmp_path / "points", Ranks(parallel="fsdp"), keep_last=50)
    assert losses == pytest.approx({step: alone[step] for step in range(5, 13)}, abs=TOLERANCE)


def test_a_damaged_part_is_refused(killed: Told, job: ModuleType, tmp_path: Path) -> None:
    shutil.copytree(killed.points / "step-00000004", tmp_path / "step-00000004")
    part = max((tmp_path / "step-00000004").glob("*.safetensors"))
    part.write_bytes(part.read_bytes()[:-1] + b"x")
    with pytest.raises(BadInput, match=rf"{part.name}: its bytes changed after it was written"):
        job.train(tmp_path, Ranks(parallel="fsdp"))


def test_a_point_of_another_model_is_refused(killed: Told, job: ModuleType, tmp_path: Path) -> None:
    shutil.copytree(killed.points / "step-00000004", tmp_path / "step-00000004")
    with pytest.raises(BadInput, match="of another model or optimizer"):
        job.train(tmp_path, Ranks(parallel="ddp"))


def test_who_is_slow_and_who_stands_still_is_named(machines: Machines, tmp_path: Path) -> None:
    """Rank 2 takes long for its batches; once that is said, rank 1 stops, and the run ends with a sentence."""
    told = train(machines, tmp_path / "hangs", slow=2, stopped=1, hang_seconds=10.0, steps=2_000)
    slow = [note for note in told.notes if " is slow: " in note]
    assert any(note.startswith("rank 2 on ") for note in slow), told.notes
    assert all(float(note.split(" ms, ")[1].split()[0]) > 1.5 for note in slow), slow
    failed = told.lines[-1]
    assert failed["kind"] == "failed"
    assert "for 10 s no sign of life from rank 1 on " in failed["text"], failed
    assert re.search(r"\(process \d+; step \d+: \w", failed["text"]), "where it was a second before"
    figures = [line["values"] for line in told.lines if line["kind"] == "Metric"]
    assert any(each.get("train/slowest_rank") == 2 and each["train/slowest_rank_factor"] > 1.5 for each in figures)


@pytest.mark.soak
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_other_ways_to_share_come_back_from_a_kill_too(
    parallel: str, machines: Machines, job: ModuleType, tmp_path: Path
) -> None:
    losses, _ = job.train(tmp_path / "alone", Ranks(parallel=parallel))  # type: ignore[arg-type]
    told = train(machines, tmp_path / "nodes", parallel=parallel, killed=0, restarts=1)
    assert told.losses == pytest.approx(losses, abs=TOLERANCE)


@pytest.mark.soak
def test_a_first_rank_that_stands_still_is_named_by_another(machines: Machines, tmp_path: Path) -> None:
    told = train(machines, tmp_path / "first", parallel="fsdp", stopped=0, hang_seconds=10.0)
    assert "for 10 s no sign of life from rank 0 at " in told.lines[-1]["text"]
    assert "whose store rank " in told.lines[-1]["text"]


@pytest.mark.soak
def test_a_rank_that_stood_still_begins_again(machines: Machines, job: ModuleType, tmp_path: Path) -> None:
    """What was stopped is killed and started again, if the settings allow it."""
    losses, _ = job.train(tmp_path / "alone", Ranks())
    told = train(machines, tmp_path / "again", stopped=2, restarts=1, hang_seconds=10.0)
    assert told.losses == pytest.approx(losses, abs=TOLERANCE)
    said = [note for note in told.notes if "no sign of life from rank 2 on " in note]
    assert any("all begin again" in note for note in said), told.notes


@pytest.mark.soak
def test_a_rank_that_was_killed_once_too_often_is_named(machines: Machines, tmp_path: Path) -> None:
    told = train(machines, tmp_path / "killed", killed=2, restarts=0)
    assert told.lines[-1]["kind"] == "failed"
    assert "rank 2 on " in told.lines[-1]["text"]
    assert "SIGKILL" in told.lines[-1]["text"]


def test_several_machines_need_a_place_to_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(launch.RENDEZVOUS, raising=False)
    with pytest.raises(BadInput, match=r"nodes: 3 machines meet where GROUNDUP_RENDEZVOUS says: HOST:PORT"):
        launch.endpoint(3)
    monkeypatch.setenv(launch.RENDEZVOUS, "first:29500")
    assert launch.endpoint(3) == "first:29500"
    assert launch.endpoint(1) == "localhost:0"


def test_who_joins_once_leaves_though_the_job_goes_a_moment_after_its_own_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = tmp_path / ".groundup" / "scratch" / "pretrain" / "ranks" / launch.JOB
    job.parent.mkdir(parents=True)
    job.write_text(json.dumps({"id": "7", "stage": "pretrain", "endpoint": "h:1", "start": {"nodes": 2, "ranks": 1}}))
    slept = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        assert len(slept) < 5, "it waits for a job that is over"
        job.unlink(missing_ok=True)  # the host takes it away only now

    monkeypatch.setattr(join, "lend", lambda *_: 0)
    monkeypatch.setattr(join.time, "sleep", sleep)
    monkeypatch.setattr(join.signal, "signal", lambda *_: None)
    assert join.main([str(tmp_path), "--once"]) == 0


def test_a_machine_knows_its_address_on_the_way() -> None:
    assert agent.way_to("127.0.0.1:29500") == ("127.0.0.1", "lo")

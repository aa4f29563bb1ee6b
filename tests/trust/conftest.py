"""One whole small workspace for all faults, made once; each test breaks a copy of the part that it needs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks import killing
from llm_core import artifacts
from llm_core.pipeline import PIPELINE, stage
from tasks.workspace import Workspace


class Stages:
    """Runs stages, with faults, in forks of a process that has everything imported (zygote.py)."""

    def __init__(self, project: Path) -> None:
        environment = killing.environment() | {"PYTHONPATH": str(project)}
        environment.pop("MLFLOW_TRACKING_URI", None)
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("zygote.py"))],
            cwd=project, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def __call__(self, space: Workspace, verb: str, tracker: str = "", **faults: Any) -> tuple[int, str]:
        """Exit code (minus the signal) of the stage's process, and what it said."""
        job = {"workspace": str(space.root), "stage": verb, "faults": faults}
        job["environment"] = {"MLFLOW_TRACKING_URI": tracker} if tracker else {}
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        return answer["code"], answer["said"]

    def close(self) -> None:
        """End the process."""
        self.process.communicate()


@pytest.fixture(scope="session")
def project(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the code: nobody's editing changes what is run here."""
    return killing.copy_code(root, tmp_path_factory.mktemp("trusted"))


@pytest.fixture(scope="session")
def stages(project: Path) -> Iterator[Stages]:
    found = Stages(project)
    yield found
    found.close()


class Whole:
    """A workspace in which nobody disturbs anything; its stages run when a test first asks for their product."""

    def __init__(self, space: Workspace, stages: Stages) -> None:
        self.space, self._stages = space, stages

    def product(self, name: str) -> Path:
        """A product, made now if nobody has asked for it before. Nobody may change anything in it."""
        if not self.space.product(name).exists():
            row = next(row for row in PIPELINE if row.makes == name)
            for need in row.needs:
                self.product(need)
            code, said = self._stages(self.space, row.verb)
            assert code == 0, said
        return self.space.product(name)

    def copy(self, name: str, space: Workspace) -> None:
        """A product and its report, copied into another workspace."""
        verb = next(row.verb for row in PIPELINE if row.makes == name)
        shutil.copytree(self.product(name), space.product(name))
        space.report(verb).parent.mkdir(exist_ok=True)
        shutil.copyfile(self.space.report(verb), space.report(verb))

    def hidden(self, what: str, space: Workspace) -> Path:
        """A part of .groundup, copied into another workspace."""
        return Path(shutil.copytree(self.space.root / ".groundup" / what, space.root / ".groundup" / what))


@pytest.fixture(scope="session")
def whole(project: Path, stages: Stages, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """The undisturbed products, without DVC."""
    return Whole(killing.workspace(project, tmp_path_factory.mktemp("whole") / "whole"), stages)


@pytest.fixture
def part(project: Path, whole: Whole, tmp_path: Path) -> Callable[..., Workspace]:
    """`part("pretrain")`: a workspace of its own in which everything stands that the stage reads, nothing else."""

    def make(verb: str, *, name: str = "part", settings: dict[str, Any] | None = None) -> Workspace:
        space = killing.workspace(project, tmp_path / name, settings)
        for product in stage(verb).needs:
            whole.copy(product, space)
        return space

    return make


@pytest.fixture
def right(whole: Whole) -> Callable[[Workspace, str], None]:
    """`right(space, "pretrain")` asserts that the stage's product is that of the undisturbed run."""

    def compare(space: Workspace, verb: str) -> None:
        product = stage(verb).makes
        artifacts.verify(space.product(product))
        if product == "raw":
            assert killing.raw_pages(space.product("raw")) == killing.raw_pages(whole.product("raw"))
        else:
            assert artifacts.digest(space.product(product)) == artifacts.digest(whole.product(product))

    return compare


def flip(path: Path, at: float = 0.5) -> None:
    """Turn one bit over in the middle of a file; time and size stay, as when a disk decays."""
    state, content = path.stat(), bytearray(path.read_bytes())
    content[int(len(content) * at)] ^= 0x10
    path.chmod(0o644)
    path.write_bytes(content)
    path.chmod(state.st_mode)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


def cut(path: Path, at: float = 0.5) -> None:
    """Lose the end of a file."""
    mode = path.stat().st_mode
    path.chmod(0o644)
    os.truncate(path, int(path.stat().st_size * at))
    path.chmod(mode)


@pytest.fixture(params=[flip, cut], ids=["flipped", "cut"])
def damage(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Two ways in which a file is damaged."""
    found: Callable[..., None] = request.param
    return found

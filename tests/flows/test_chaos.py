"""Chaos: engine, worker, server and trainer are killed at random moments of a build; it ends with the same bytes.

What is killed and when is drawn from a seed. When is a share of the training's steps, so a fast and a slow machine are
hit at the same places. A person's part is played as on Prefect's page: a run that failed or crashed gets Retry.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from deployments import servers
from llm_core import artifacts
from tasks import experiments, params
from tasks.runner import child_environment
from tasks.workspace import Workspace

STEPS = 600
VICTIMS = ("engine", "worker", "prefect", "mlflow", "trainer")
KILLS_A_BUILD = 3


@pytest.fixture(scope="module")
def prepared(root: Path, stack: Workspace, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A workspace with shards but no model, and the digest of the model that an undisturbed build makes there."""
    folder = tmp_path_factory.mktemp("chaos")
    tiny = params.overlay(params.read(root / "params.yaml"), params.read(root / "presets" / "tiny.yaml"))
    training = {"pretrain": {"steps": STEPS, "evaluate_every": STEPS // 3, "save_every_seconds": 0.5}}
    text = params.dump(params.overlay(tiny, training))
    space = experiments.make_workspace(root, folder / "undisturbed", text, cache=folder / "cache")
    repro(space, "tokenize")
    shutil.copyfile(space.root / "dvc.lock", folder / "dvc.lock")
    repro(space, "pretrain")
    return folder, artifacts.digest(space.product("base"))


def repro(space: Workspace, stage: str) -> None:
    """DVC's door: no Prefect is in it."""
    environment = child_environment(Path(os.devnull))
    done = subprocess.run(["dvc", "repro", stage], cwd=space.root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def plan(seed: int, count: int) -> Iterator[list[tuple[float, str]]]:
    """For each build its kills: (share of the steps, victim). Each victim comes up as often as any other."""
    rng = random.Random(seed)
    rounds = -(-count // len(VICTIMS))
    victims = [victim for _ in range(rounds) for victim in rng.sample(VICTIMS, len(VICTIMS))][:count]
    for first in range(0, count, KILLS_A_BUILD):
        few = victims[first : first + KILLS_A_BUILD]
        yield list(zip(sorted(rng.uniform(0.02, 0.8) for _ in few), few, strict=True))


def kill(victim: str, project: Path, trainer: psutil.Process) -> None:
    """`kill -9` of one process, whoever depends on it."""
    if victim == "trainer":
        trainer.kill()
    elif victim == "engine":
        next(
            p for p in trainer.parents() if "prefect.engine" in p.cmdline() or "prefect.flow_engine" in p.cmdline()
        ).kill()
    else:
        psutil.Process(json.loads((project / ".run" / f"{victim}.json").read_text())["pid"]).kill()


def build_under_fire(
    api: Any, work: Any, stack: Workspace, space: Workspace, kills: list[tuple[float, str]]
) -> list[str]:
    """One build, started from the page and retried there until it is complete; what happened."""
    story = []
    at_work = work(space.root)
    run = api.start("build", {"workspace": str(space.root), "stages": ["pretrain"]})

    def ended() -> Any:
        """Retry whatever ended before it was complete."""
        state = api.has_ended(run)
        if state and state["type"] != "COMPLETED":
            story.append(f"{state['type']}: retry ({state['message']})")
            assert len([line for line in story if "retry" in line]) <= 2 * len(kills), story
            api.until("the killed attempt is gone", lambda: at_work.process() is None)
            api.retry(run)
            return None
        return state

    for share, victim in kills:
        api.until(
            f"step {share:.0%} or the end",
            lambda share=share: (at_work.process() and at_work.step() >= share * STEPS) or ended(),  # type: ignore[misc]
        )
        trainer = at_work.process()
        assert trainer, f"the build was complete before {victim} could be killed: {story}"
        story.append(f"step {at_work.step():.0f}: kill {victim}")
        try:
            kill(victim, stack.root, trainer)
        except (psutil.NoSuchProcess, StopIteration):
            story.append(f"{victim} had just died by itself")
        if victim in ("trainer", "engine", "worker"):
            api.until(f"the trainer goes after its {victim}", lambda: not trainer.is_running() or ended())  # noqa: B023
    api.until("the build is complete", ended)
    return story


def disturb(
    seed: int, count: int, api: Any, work: Any, stack: Workspace, prepared: tuple[Path, str], root: Path
) -> None:
    folder, digest = prepared
    text = (folder / "undisturbed" / "params.yaml").read_text()
    for number, kills in enumerate(plan(seed, count)):
        shutil.rmtree(folder / "cache" / "runs")  # or DVC would bring the model back without training
        space = experiments.make_workspace(root, folder / f"build-{seed}-{number}", text, cache=folder / "cache")
        shutil.copyfile(folder / "dvc.lock", space.root / "dvc.lock")
        story = build_under_fire(api, work, stack, space, kills)
        print("; ".join(story))
        assert artifacts.digest(space.product("base")) == digest, story
        assert len([line for line in story if "kill " in line]) == len(kills)
    leftovers = [p for p in psutil.process_iter(["cmdline", "cwd"]) if "tasks.run" in (p.info["cmdline"] or [])
                 and (p.info["cwd"] or "").startswith(str(folder))]  # fmt: skip
    assert not leftovers
    api.until("the servers stand", lambda: servers.running(stack.root).keys() >= {"prefect", "mlflow", "worker"})


@pytest.mark.timeout(1200)
def test_three_kills(api: Any, work: Any, stack: Workspace, prepared: tuple[Path, str], root: Path) -> None:
    disturb(4, 3, api, work, stack, prepared, root)


@pytest.mark.soak
@pytest.mark.timeout(5400)
def test_twenty_kills(api: Any, work: Any, stack: Workspace, prepared: tuple[Path, str], root: Path) -> None:
    disturb(20, 20, api, work, stack, prepared, root)

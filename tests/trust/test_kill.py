"""SIGKILL anywhere, by both doors: the products at the end are those of an undisturbed run (benchmarks/killing.py)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import killing
from llm_core.pipeline import VERBS
from tasks.workspace import Workspace


def test_the_plan_deals_fairly() -> None:
    """Sixty kills: every stage, door and victim comes up as often as any other, in the order of the stages."""
    tours = list(killing.plan(seed=1, count=60, tour=9))
    kills = [kill for some in tours for kill in some]
    assert len(kills) == 60
    for name, least in (("stage", 6), ("door", 30), ("victim", 15)):
        assert min(Counter(getattr(kill, name) for kill in kills).values()) >= least, name
    for some in tours:
        assert [VERBS.index(kill.stage) for kill in some] == sorted(VERBS.index(kill.stage) for kill in some)
    assert tours == list(killing.plan(seed=1, count=60, tour=9))
    assert tours != list(killing.plan(seed=2, count=60, tour=9))


@pytest.mark.timeout(1800)
def test_three_kills(
    workspace: Workspace, project: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """`workspace` is asked for because its servers serve the door that needs Prefect."""
    found = killing.harness(project, tmp_path, kills=3, seed=5, per_tour=3)
    print(json.dumps(found))
    assert found["kills"] >= 3
    record_property("kills", found["kills"])


@pytest.mark.soak
@pytest.mark.timeout(4 * 3600)
def test_sixty_kills(workspace: Workspace, project: Path, tmp_path: Path) -> None:
    found = killing.harness(project, tmp_path, kills=60, seed=1, side_by_side=2)
    print(json.dumps(found))
    assert found["kills"] >= 60
    assert min(found["by"]["stage"].values()) > 0
    assert min(found["by"]["door"].values()) > 0

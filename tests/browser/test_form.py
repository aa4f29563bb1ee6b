"""Prefect's custom-run form in a real browser: another learning rate, a run that completes, two curves side by side."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import yaml

from deployments import servers, supervisor
from tasks.workspace import Workspace

pytestmark = pytest.mark.timeout(1800)


@pytest.fixture(scope="module")
def stack(voting_project: Workspace, browser: Any) -> Iterator[dict[str, str]]:
    """Worker, deployments and voting page of the project; the addresses of Prefect, MLflow and the page."""
    root = voting_project.root
    supervisor.up(root, lambda _: None)
    urls = servers.running(root)
    yield {
        "prefect": os.environ["PREFECT_API_URL"].removesuffix("/api"),
        "mlflow": os.environ["MLFLOW_TRACKING_URI"],
        "chat": urls["chat"],
    }
    servers.stop(root, (servers.KEEPER, servers.WORKER, servers.CHAT))


def started(driver: ModuleType, browser: Any, stack: dict[str, str], rate: str, stages: tuple[str, ...]) -> None:
    """Fill the form, start the run, watch it complete, open its artifacts, and see the curves of two runs."""
    with driver.open_page(browser, driver.run_form(stack["prefect"], "build")) as page:
        driver.fill_form(page, {driver.LEARNING_RATE: rate})
        for stage in stages:
            driver.choose(page, ("stages",), stage)
        run = driver.submit(page, stack["prefect"], "build")
        driver.watch(page, stack["prefect"], run)
        driver.open_artifacts(page)
    with driver.open_page(browser, stack["mlflow"]) as page:
        charts = driver.charts_of(stack["mlflow"], "groundup/pretrain")
        assert driver.curves(page, charts, "train/loss", 2) >= 2


def learning_rates(space: Workspace) -> dict[str, Any]:
    """What each experiment overrides: only the learning rate may differ from the main settings."""
    main = yaml.safe_load((space.root / "params.yaml").read_text())
    found = {}
    for path in (space.root / "runs").glob("*/params.yaml"):
        theirs = yaml.safe_load(path.read_text())
        optimizer = theirs["pretrain"].pop("optimizer", {})
        assert theirs == {**main, "pretrain": {k: v for k, v in main["pretrain"].items() if k != "optimizer"}}
        found[path.parent.name] = optimizer["learning_rate"]
    return found


def test_a_run_from_the_form_ends_beside_the_main_one(
    driver: ModuleType, browser: Any, stack: dict[str, str], voting_project: Workspace
) -> None:
    started(driver, browser, stack, "0.004", ("pretrain",))
    rates = learning_rates(voting_project)
    assert 0.004 in rates.values()
    name = next(name for name, rate in rates.items() if rate == 0.004)
    report = json.loads((voting_project.root / "runs" / name / "reports" / "pretrain.json").read_text())
    assert report["params"]["optimizer.learning_rate"] == "0.004"


@pytest.mark.soak
def test_a_whole_build_from_the_form(
    driver: ModuleType, browser: Any, stack: dict[str, str], voting_project: Workspace
) -> None:
    started(driver, browser, stack, "0.006", ())
    name = next(name for name, rate in learning_rates(voting_project).items() if rate == 0.006)
    assert (voting_project.root / "runs" / name / "models" / "aligned" / "manifest.json").is_file()


def test_the_page_that_up_starts_takes_a_vote(driver: ModuleType, browser: Any, stack: dict[str, str]) -> None:
    with driver.open_page(browser, stack["chat"]) as page:
        driver.ask(page, "How long is the word bread?")
        assert driver.trace_in(driver.vote(page, "both-bad"))

"""`groundup refresh` on a small site: no change reruns nothing; what changed is named, and only what follows reruns."""

from __future__ import annotations

import asyncio
import functools
import http.server
import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from deployments import servers
from llm_core import artifacts
from llm_core.pipeline import VERBS
from tasks import experiments
from tasks.workspace import Workspace

PAGES = 12


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Files with Last-Modified, so that conditional requests are answered by 304."""

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class Site:
    """Pages in a folder; each write moves the file's time on by a minute, as Last-Modified counts whole seconds."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder, self.url, self._clock = folder, url, 1_700_000_000

    def write(self, name: str, links: list[str]) -> None:
        self._clock += 60
        words = random.Random(f"{name} {self._clock}").choices(WORDS, k=120)
        text = " ".join(words) + ". " + " ".join(f'<a href="{link}">{link}</a>' for link in links)
        path = self.folder / name
        path.write_text(f"<html><head><title>{name}</title></head><body><article><p>{text}</p></article></body></html>")
        os.utime(path, (self._clock, self._clock))


WORDS = [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in "aeiou" for c in ("n", "r", "st", "l", "mp")]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        found = Site(folder, f"http://127.0.0.1:{server.server_port}/")
        names = [f"page{number}.html" for number in range(PAGES - 1)]
        found.write("index.html", names)
        for name in names:
            found.write(name, [])
        yield found
        server.shutdown()


@pytest.fixture(scope="module")
def project(workspace: Workspace, root: Path, site: Site, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A project whose only source is the site; it uses the servers of the session's workspace."""
    folder = tmp_path_factory.mktemp("site-project")
    source = {"kind": "web", "name": "site", "start": [f"{site.url}index.html"], "contact": "tests@example.org",
              "delay_seconds": 0, "allow_private": ["127.0.0.1"]}  # fmt: skip
    filters = {"min_words": 10, "gopher_quality": False, "gopher_repetition": False}
    content = {"acquire": {"sources": [source]}, "clean": {"sources": {"site": {"filters": filters}}},
               "tokenize": {"vocab_size": 300},
               "pretrain": {"steps": 2, "model": {"layers": 1, "width": 16, "heads": 1, "context": 32}}}  # fmt: skip
    content |= {verb: {"seed": 1} for verb in VERBS if verb not in content}
    return experiments.make_workspace(root, folder, yaml.safe_dump(content), cache=folder / ".dvc" / "cache")


def groundup(space: Workspace, *arguments: str) -> dict[str, Any]:
    """A command with --json, and what it printed."""
    command = [sys.executable, "-m", "flows.cli", *arguments, "--json"]
    done = subprocess.run(command, cwd=space.root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    printed: dict[str, Any] = json.loads(done.stdout)
    return printed


def states(space: Workspace) -> list[str]:
    """What became of the three data stages when they were asked for."""
    summary = groundup(space, "run", "tokenize")
    return [summary["states"][verb] for verb in ("acquire", "clean", "tokenize")]


def found_by(space: Workspace) -> dict[str, set[str]]:
    """Page names by what the last refresh found them to be."""
    report = space.read_report("acquire")
    assert report is not None
    found: dict[str, set[str]] = {}
    for row in report["tables"]["refresh"]:
        found.setdefault(row["change"], set()).add(row["url"].rpartition("/")[2])
    return found


def stored_bytes(space: Workspace) -> dict[str, int]:
    segments = (space.root / ".groundup" / "crawl").rglob("*.warc.gz*")
    return {path.name: path.stat().st_size for path in segments}


def test_an_unchanged_site_writes_nothing_and_reruns_nothing(project: Workspace) -> None:
    assert states(project) == ["ran", "ran", "ran"]
    before, raw = stored_bytes(project), artifacts.digest(project.product("raw"))
    assert before
    changes = groundup(project, "refresh", "--no-build")
    assert not changes["changed"]
    assert [changes["counts"][name] for name in ("new", "changed", "gone", "unchanged")] == [0, 0, 0, PAGES]
    assert stored_bytes(project) == before
    assert artifacts.digest(project.product("raw")) == raw
    assert states(project) == ["fresh", "fresh", "fresh"]


def test_exactly_what_changed_is_named_and_only_what_follows_reruns(project: Workspace, site: Site) -> None:
    """Three pages change (one of them to link to the new ones), two are new, one has vanished."""
    names = [f"page{number}.html" for number in range(PAGES - 1)]
    site.write("index.html", [*names, "new1.html", "new2.html"])
    for name in ("page0.html", "page1.html", "new1.html", "new2.html"):
        site.write(name, [])
    (site.folder / "page2.html").unlink()
    changes = groundup(project, "refresh", "--no-build")
    assert changes["changed"]
    assert [changes["counts"][name] for name in ("new", "changed", "gone", "unchanged")] == [2, 3, 1, PAGES - 4]
    found = found_by(project)
    assert found["new"] == {"new1.html", "new2.html"}
    assert found["changed"] == {"index.html", "page0.html", "page1.html"}
    assert found["gone"] == {"page2.html"}
    assert states(project) == ["fresh", "ran", "ran"]


def test_a_clone_that_never_crawled_asks_conditionally_too(project: Workspace, site: Site) -> None:
    """Its crawl store is made from data/raw: unchanged pages are not fetched again, and one that changed is named."""
    shutil.rmtree(project.root / ".groundup" / "crawl")
    raw = artifacts.digest(project.product("raw"))
    assert not groundup(project, "refresh", "--no-build")["changed"]
    assert artifacts.digest(project.product("raw")) == raw
    site.write("page5.html", [])
    groundup(project, "refresh", "--no-build")
    assert {change: names for change, names in found_by(project).items() if change != "unchanged"} == {
        "changed": {"page5.html"}
    }


def test_a_refresh_builds_what_follows(project: Workspace, site: Site) -> None:
    """Without --no-build the build begins; this project has no dialogues, and sft says so in one sentence."""
    site.write("page4.html", [])
    command = [sys.executable, "-m", "flows.cli", "refresh"]
    done = subprocess.run(command, cwd=project.root, capture_output=True, text=True)
    assert "the raw data changed: 0 new, 1 changed, 0 gone" in done.stdout
    assert "pretrain  ran" in done.stderr
    assert "dialogues" in done.stderr
    assert done.returncode == 2


def by_automation(api: Any) -> list[str]:
    """Ids of builds that an automation started."""
    deployment = api.ask("deployments/name/build/build")["id"]
    runs = api.ask("flow_runs/filter", {"deployments": {"id": {"any_": [deployment]}}})
    return [run["id"] for run in runs if (run["created_by"] or {}).get("type") == "AUTOMATION"]


@pytest.mark.timeout(1200)
def test_new_data_starts_a_build_and_unchanged_data_does_not(
    project: Workspace, site: Site, stack: Workspace, api: Any
) -> None:
    """The scheduled refresh, as the worker runs it: its event reaches the automation, which starts the build."""
    site.write("page7.html", [])
    before = set(by_automation(api))
    assert api.ended(api.start("refresh", {"workspace": str(project.root)}))["type"] == "COMPLETED"
    (build,) = api.until("the automation starts a build", lambda: set(by_automation(api)) - before)
    assert api.ask(f"flow_runs/{build}")["parameters"].get("settings") is None
    api.cancel(build)
    api.ended(build)
    run = api.start("refresh", {"workspace": str(project.root)})
    assert api.ended(run)["type"] == "COMPLETED"
    (told,) = [artifact for artifact in api.ask("artifacts/filter", {"flow_runs": {"id": {"any_": [run]}}})
               if artifact["key"] == "changes"]  # fmt: skip
    assert "the raw data is unchanged" in told["data"]
    assert set(by_automation(api)) == before | {build}


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_schedules_that_were_missed_run_once(project: Workspace, stack: Workspace, api: Any) -> None:
    """The machine slept for three nights: three refreshes are late, and one of them is enough."""
    servers.stop(stack.root, (servers.WORKER,))
    deployment = api.ask("deployments/name/refresh/refresh")["id"]
    late = []
    for days in (3, 2, 1):
        then = time.strftime("%Y-%m-%dT03:00:00Z", time.gmtime(time.time() - 86_400 * days))
        state = {"type": "SCHEDULED", "state_details": {"scheduled_time": then}}
        body = {"parameters": {"workspace": str(project.root)}, "state": state}
        late.append(api.ask(f"deployments/{deployment}/create_flow_run", body)["id"])
    servers.ensure_worker(stack.root)
    assert sorted(api.ended(run)["type"] for run in late) == ["CANCELLED", "CANCELLED", "COMPLETED"]


@pytest.mark.parametrize("hour", [2, 3])
def test_clocks_that_change_neither_skip_nor_repeat_a_night(root: Path, hour: int) -> None:
    """The schedule of prefect.yaml in a zone whose clocks skip 02:00-03:00 in spring and repeat it in autumn."""
    from prefect.server.schemas.schedules import CronSchedule

    file = yaml.safe_load((root / "deployments" / "prefect.yaml").read_text())
    (schedule,) = next(found for found in file["deployments"] if found["name"] == "refresh")["schedules"]
    assert CronSchedule(cron=schedule["cron"], timezone=schedule["timezone"])
    berlin = CronSchedule(cron=f"30 {hour} * * *", timezone="Europe/Berlin")
    for start in (datetime(2027, 3, 26, tzinfo=UTC), datetime(2026, 10, 23, tzinfo=UTC)):
        dates = asyncio.run(berlin.get_dates(5, start))
        assert len({date.date() for date in dates}) == 5
        assert dates[-1] - dates[0] < timedelta(days=4, hours=2)

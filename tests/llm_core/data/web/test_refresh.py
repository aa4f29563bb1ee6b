"""Asking again: conditional requests, what changed, and a product that stays as it was."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llm_core import artifacts
from llm_core.contract import Report
from llm_core.data import acquire
from llm_core.data.web.job import CrawlJob
from llm_core.data.web.store import CrawlFailed, delivered, snapshot
from llm_core.settings.acquire import AcquireConfig, WebSource


class Stage:
    """`acquire` of one web source, again and again into the same places."""

    def __init__(self, site: Any, folder: Path) -> None:
        self.site, self.folder = site, folder
        self.source = WebSource(
            kind="web", name="site", start=(f"{site.url}/",), contact="x@example.org", delay_seconds=0, concurrency=8,
            allow_private=("127.0.0.1",),
        )  # fmt: skip

    def run(self, *, refresh: bool) -> Report:
        config = AcquireConfig(sources=(self.source,), store=self.folder / "store", refresh=refresh)
        return acquire.run(config, out=self.folder / "raw", scratch=self.folder, emit=lambda _: None)

    @property
    def digest(self) -> str:
        return artifacts.digest(self.folder / "raw")

    @property
    def bytes_in_segments(self) -> int:
        return sum(path.stat().st_size for path in (self.folder / "store").rglob("*.warc.gz*"))


@pytest.fixture
def stage(site: Any, tmp_path: Path) -> Stage:
    names = [f"/{i}" for i in range(12)]
    site.page("/", *names, "/tagged", "/closed", "/missing", "/new1", "/new2")
    for name in names:
        site.page(name, text=f"page {name}")
    site.page("/tagged", **{"ETag": '"1"'})
    site.answers["/robots.txt"] = (200, {}, b"User-agent: *\nDisallow: /closed")
    return Stage(site, tmp_path)


def test_a_refresh_that_finds_nothing_writes_nothing_and_one_that_finds_tells_what(site: Any, stage: Stage) -> None:
    first = stage.run(refresh=False)
    assert first.metrics["pages"] == 14
    assert "refresh" not in first.tables
    digest, size, asked = stage.digest, stage.bytes_in_segments, site.asked.total()

    stage.run(refresh=False)
    assert site.asked.total() == asked, "a plain rerun asks nobody"
    assert stage.digest == digest

    for path, (_, headers, _) in site.answers.items():
        headers["Last-Modified"] = f"the server's clock at {path}"  # validators alone are no change
    again = stage.run(refresh=True)
    changes = ("new", "changed", "gone", "unchanged")
    assert [again.metrics[name] for name in changes] == [0, 0, 0, 14]
    assert list(again.tables["refresh"]) == []
    assert (stage.digest, stage.bytes_in_segments) == (digest, size), "not a byte was written"
    assert site.conditional == {"/tagged"}

    for name in ("/1", "/2", "/3"):
        site.page(name, text="other words")
    site.page("/new1"), site.page("/new2")
    del site.answers["/4"]
    found = stage.run(refresh=True)
    assert [found.metrics[name] for name in changes] == [2, 3, 1, 10]
    listed = {(row["change"], str(row["url"]).removeprefix(site.url)) for row in found.tables["refresh"]}
    assert listed == {
        ("new", "/new1"), ("new", "/new2"), ("gone", "/4"), ("changed", "/1"), ("changed", "/2"), ("changed", "/3"),
    }  # fmt: skip
    assert found.metrics["pages"] == 15
    assert stage.digest != digest

    site.page("/4", text="page /4")
    back = stage.run(refresh=True)
    assert [back.metrics[name] for name in changes] == [1, 0, 0, 15]


def test_a_killed_refresh_goes_on_and_its_diff_is_whole(site: Any, job: CrawlJob, crawls: Any, tmp_path: Path) -> None:
    count = 150
    site.many(count)
    crawls.go(job)
    snapshot(job, tmp_path / "first", source="site", licence="CC0-1.0")
    delivered(job)
    for i in (0, 5, 100, 149):
        site.page(f"/{i}", text="changed")
    del site.answers["/120"]
    again = replace(job, refresh=True)
    again.write(tmp_path / "job.json")
    site.delay = 0.02
    command = [sys.executable, "-m", "llm_core.data.web.crawl", str(tmp_path / "job.json")]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert child.stdout is not None
    for line in child.stdout:
        if json.loads(line)["fetched"] >= 40:
            break
    child.kill()
    child.communicate()
    assert child.returncode == -signal.SIGKILL
    site.delay = 0.0
    site.asked.clear()
    crawls.go(again)
    assert 0 < site.asked.total() < count, "it goes on where it was"
    taken = snapshot(again, tmp_path / "second", source="site", licence="CC0-1.0")
    assert taken.diff.counts == {"new": 0, "changed": 4, "gone": 1, "unchanged": count - 4}
    site.asked.clear()
    crawls.go(again)
    assert site.asked.total() == count + 2, "the next refresh asks for everything again"


def test_a_refresh_without_a_network_fails_and_changes_nothing(site: Any, stage: Stage) -> None:
    stage.run(refresh=False)
    digest = stage.digest
    site.server.shutdown()
    site.server.server_close()
    with pytest.raises(CrawlFailed, match=r"the refresh of site got no answer: .* is there a network\?"):
        stage.run(refresh=True)
    assert stage.digest == digest

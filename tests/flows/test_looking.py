"""Commands that look and change nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from flows import looking
from llm_core.contract import BadInput
from tasks import experiments
from tasks.workspace import Workspace

SITE = {"kind": "web", "name": "site", "start": ["http://127.0.0.1:9/"], "contact": "tests@example.org",
        "deny": ["/private/"], "allow_private": ["127.0.0.1"]}  # fmt: skip


@pytest.fixture
def space(root: Path, tmp_path: Path) -> Workspace:
    text = yaml.safe_dump({"acquire": {"sources": [SITE]}})
    return experiments.make_workspace(root, tmp_path / "project", text, cache=tmp_path / "cache")


def test_crawl_check_takes_the_settings_of_the_source_that_starts_there(space: Workspace) -> None:
    found = looking.crawl_check(space, "http://127.0.0.1:9/private/page?utm_source=x#top", None)
    assert found["source"] == "site"
    assert found["canonical"] == "http://127.0.0.1:9/private/page"
    assert not found["allowed"]
    assert not found["in_scope"]


def test_crawl_check_without_a_source_refuses_what_is_inside(space: Workspace) -> None:
    found = looking.crawl_check(space, "http://127.0.0.2:9/", None)
    assert found["source"] is None
    assert not found["public"]
    assert "loopback" in found["why"]


def test_crawl_check_names_unknown_sources_and_what_is_no_url(space: Workspace) -> None:
    with pytest.raises(BadInput, match="there are: site"):
        looking.crawl_check(space, "http://127.0.0.1:9/", "other")
    with pytest.raises(BadInput, match="not an http or https URL"):
        looking.crawl_check(space, "ftp://127.0.0.1/", None)


@pytest.fixture
def dropped(space: Workspace) -> list[dict[str, Any]]:
    about = {"source": "site", "what": "documents", "digest": "0", "excerpt": "..", "cluster": None}
    reasons = ["no_text", "duplicate", "no_text"]
    rows = [about | {"url": f"http://x/{number}", "reason": reason} for number, reason in enumerate(reasons)]
    folder = space.product("corpus")
    folder.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / "dropped.parquet")
    return rows


def test_dropped_rows_by_reason(space: Workspace, dropped: list[dict[str, Any]]) -> None:
    assert [row["url"] for row in looking.dropped(space, "no_text", None)] == ["http://x/0", "http://x/2"]
    assert len(list(looking.dropped(space, None, 2))) == 2
    assert len(list(looking.dropped(space, None, None))) == len(dropped)


def test_a_reason_that_never_came_up_lists_those_that_did(space: Workspace, dropped: list[dict[str, Any]]) -> None:
    with pytest.raises(BadInput, match=r"no_text \(2\)"):
        list(looking.dropped(space, "no_txt", None))


def test_without_a_corpus(space: Workspace) -> None:
    with pytest.raises(BadInput, match="groundup run clean"):
        list(looking.dropped(space, None, None))


def test_lines_leave_out_what_is_empty() -> None:
    assert looking.lines({"url": "u", "robots": "", "delay": 0.0}) == "url     u\ndelay   0.0"

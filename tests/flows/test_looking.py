"""Commands that look and change nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from flows import looking
from llm_core import artifacts
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
    with artifacts.new_product(space.product("corpus"), "corpus", {}) as folder:
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


PAGE = "<html lang=en><head><title>Bread</title></head><body><nav>Home</nav><article><p>{}</p></article></body></html>"


def test_extract_tells_what_clean_would_take_and_what_each_engine_gives(space: Workspace, tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    file.write_text(PAGE.format("A loaf wants flour, water, salt and time, and an oven that is hot. " * 5))
    found = looking.extract(space, str(file), None, None)
    assert found["by"] == "trafilatura"
    assert found["text"].startswith("A loaf wants flour")
    assert {trial["engine"] for trial in found["trials"]} >= {"trafilatura", "resiliparse"}
    told = looking.tryout(found)
    assert "title      Bread" in told
    assert told.rstrip().endswith("that is hot.")


def test_extract_takes_the_rule_of_the_url_or_the_one_that_is_named(space: Workspace, tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    file.write_text("<html><body><dl><dt><strong>f</strong>(x)</dt><dd>Give x back, as it is.</dd></dl></body></html>")
    found = looking.extract(space, str(file), None, "http://pydoc.localhost/library/f.html")
    assert str(found["rule"]).endswith("rules/pydoc.localhost.py")
    with pytest.raises(BadInput, match="no rule 'other'"):
        looking.extract(space, str(file), "other", None)


def test_extract_names_what_it_cannot_have(space: Workspace) -> None:
    with pytest.raises(BadInput, match=r"nothing\.html is no file and no URL"):
        looking.extract(space, "nothing.html", None, None)
    with pytest.raises(BadInput, match=r"would not be crawled: .*loopback"):
        looking.extract(space, "http://127.0.0.2:9/", None, None)


def test_lines_leave_out_what_is_empty() -> None:
    assert looking.lines({"url": "u", "robots": "", "delay": 0.0}) == "url     u\ndelay   0.0"

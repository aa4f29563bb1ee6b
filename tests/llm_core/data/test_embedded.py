"""The embedded documentation: nothing of this machine in it, the same bytes twice, and most of it survives."""

from __future__ import annotations

import getpass
import os
import re
import socket
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from fastwarc import ArchiveIterator

from llm_core.artifacts import verify
from llm_core.data import acquire
from llm_core.data.sources import embedded
from llm_core.settings.acquire import AcquireConfig, EmbeddedSource

SMALL = ("json", "cgi", "os", "dataclasses", "argparse")


def pages_of(raw: Path) -> dict[str, bytes]:
    """URL -> body of every page that the table of a source names."""
    pages = {}
    for row in pq.read_table(raw / "pages.parquet").to_pylist():
        with open(raw / "warc" / row["segment"], "rb") as file:
            file.seek(row["offset"])
            record = next(iter(ArchiveIterator(file, parse_http=True)))
            assert record.headers["WARC-Target-URI"] == row["url"]
            pages[row["url"]] = record.reader.read()
    return pages


@pytest.fixture(scope="module")
def pages(embedded_raw: Any) -> dict[str, bytes]:
    return pages_of(embedded_raw.product / "python")


def test_no_secret_and_nothing_of_this_machine_is_rendered(embedded_raw: Any, pages: dict[str, bytes]) -> None:
    dialogues = pq.read_table(embedded_raw.product / "python" / "dialogues.parquet").to_pylist()
    everything = b"\n".join([*pages.values(), repr(dialogues).encode()])
    assert b"os.environ" in everything, "the pages speak of the environment, but must not show it"
    for private in ("hunter2-planted-secret", sys.executable, sys.prefix + "/", os.getcwd(), str(Path.home()) + "/"):
        assert private.encode() not in everything, private
    assert not re.search(rb"\bat 0x[0-9a-f]{6,}", everything)
    for name in (socket.gethostname(), getpass.getuser()):
        if len(name) > 6:
            assert name.encode() not in everything, name


def test_masking_is_what_keeps_the_secret_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain pydoc in this very process does print it: the test above could fail."""
    import pydoc
    import warnings

    monkeypatch.setenv("GROUNDUP_TEST_SECRET", "hunter2-planted-secret")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import os as module
    assert "hunter2-planted-secret" in pydoc.html.document(module, "os")


def test_two_renders_in_two_processes_are_equal(tmp_path: Path) -> None:
    sites = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        sites.append(embedded.render(tmp_path / name, SMALL, topics=True))
    assert sites[0] == sites[1]
    assert sites[0].digest == sites[1].digest
    assert len(sites[0].dialogues) > 50


def test_full_default_is_reproducible(embedded_raw: Any, tmp_path: Path) -> None:
    """A second render of everything has the bytes that were crawled in the first."""
    site = embedded.render(tmp_path)
    crawled = pages_of(embedded_raw.product / "python")
    expected = {
        embedded.url_of(path[1:]): body for path, body in site.files.items() if path.startswith(("/library", "/topics"))
    }
    assert {url: body for url, body in crawled.items() if not url.endswith("/index.html")} == expected


def test_size_of_the_default(embedded_raw: Any, pages: dict[str, bytes]) -> None:
    dialogues = pq.read_table(embedded_raw.product / "python" / "dialogues.parquet").to_pylist()
    assert len(pages) > 350
    assert len({(d["messages"][0]["content"], d["messages"][1]["content"]) for d in dialogues}) > 4_000
    verify(embedded_raw.product)


def test_robots_closed_page_is_not_fetched(embedded_raw: Any, pages: dict[str, bytes]) -> None:
    index = pages["http://pydoc.localhost/index.html"]
    assert b"/drafts/unfinished.html" in index, "the crawl saw the link"
    assert not any("/drafts/" in url for url in pages)
    assert embedded_raw.report.tables["sources"][0]["robots"] == 1


def test_most_pages_and_two_megabytes_survive_cleaning(embedded_raw: Any, embedded_corpus: Any) -> None:
    documents = pq.read_table(embedded_corpus.product / "documents.parquet").to_pylist()
    rendered = pq.read_metadata(embedded_raw.product / "python" / "pages.parquet").num_rows - 1  # less the index
    assert len(documents) >= 0.85 * rendered
    assert all(len(row["text"].split()) >= 20 for row in documents)
    assert sum(len(row["text"].encode()) for row in documents) >= 2_000_000


def test_inherited_members_are_gone(embedded_corpus: Any) -> None:
    texts = {
        row["url"]: row["text"] for row in pq.read_table(embedded_corpus.product / "documents.parquet").to_pylist()
    }
    queue = texts["http://pydoc.localhost/library/queue.html"]
    assert "class Queue(builtins.object)" in queue
    assert "task_done(self)" in queue
    assert "with_traceback" not in queue, "inherited from BaseException"
    assert "Method resolution order" not in queue
    assert not any("inherited from" in text.split("\n")[0] for text in texts.values())


def test_a_module_is_never_divided_between_the_splits(embedded_corpus: Any) -> None:
    splits: dict[str, set[str]] = {}
    for name in ("documents", "dialogues"):
        for row in pq.read_table(embedded_corpus.product / f"{name}.parquet").to_pylist():
            if row["source"] == "python":
                splits.setdefault(row["group"], set()).add(row["split"])
    assert all(len(names) == 1 for names in splits.values())
    assert set.union(*splits.values()) == {"train", "validation"}


def test_a_rerun_fetches_nothing_and_keeps_everything(tmp_path: Path) -> None:
    config = AcquireConfig(sources=(EmbeddedSource(modules=("json",), topics=False),), store=tmp_path / "store")
    lines = []
    for name in ("one", "two"):
        (tmp_path / f"{name}-scratch").mkdir()
        acquire.run(config, out=tmp_path / name, scratch=tmp_path / f"{name}-scratch", emit=lambda _: None)
        lines.append(pq.read_table(tmp_path / name / "python" / "pages.parquet").to_pylist())
    assert lines[0] == lines[1]
    assert len(lines[0]) == 6
    store = next((tmp_path / "store" / "python").iterdir())
    assert [path.name for path in (store / "warc").iterdir()] == ["00000.warc.gz"]

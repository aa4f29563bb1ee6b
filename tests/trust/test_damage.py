"""Whatever byte of whatever is read has changed: a clear error that names the file, or the right product; never wrong.

The damaged file keeps its time and its size where a bit flips: DVC, which looks at these, holds it for unchanged.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llm_core import artifacts
from llm_core.pipeline import PIPELINE, stage
from tasks.workspace import Workspace

READERS = {"raw": "clean", "corpus": "tokenize", "shards": "pretrain", "base": "sft", "votes": "reward"}
KINDS = {
    "WARC": ("clean", "raw", "*/warc/*.warc.gz"),
    "table of pages": ("clean", "raw", "python/pages.parquet"),
    "Parquet": ("tokenize", "corpus", "documents.parquet"),
    "dialogues": ("tokenize", "corpus", "dialogues.parquet"),
    "shard": ("pretrain", "shards", "train.bin"),
    "offsets": ("pretrain", "shards", "train.offsets"),
    "tokenizer": ("pretrain", "shards", "tokenizer/*.json"),
    "weights": ("sft", "base", "model.safetensors"),
    "config": ("sft", "base", "config.json"),
    "votes": ("reward", "votes", "*.parquet"),
    "reward": ("align", "reward", "model.safetensors"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_input_is_named_and_nothing_is_made(
    part: Callable[..., Workspace], stages: Any, damage: Callable[[Path], None], kind: str
) -> None:
    verb, product, pattern = KINDS[kind]
    space = part(verb)
    victim = sorted(path for path in space.product(product).glob(pattern) if path.stat().st_size)[0]
    damage(victim)
    code, said = stages(space, verb)
    assert code == 2, said
    assert f"{victim}: its bytes differ from the manifest" in said
    maker = next(row.verb for row in PIPELINE if row.makes == product)
    assert f"groundup run {maker} --force {maker}" in said
    assert not space.product(stage(verb).makes).exists()


@pytest.mark.parametrize("product", READERS)
def test_a_damaged_manifest_is_named(
    part: Callable[..., Workspace], stages: Any, damage: Callable[..., None], product: str
) -> None:
    space = part(READERS[product])
    victim = space.product(product) / artifacts.MANIFEST
    damage(victim)
    code, said = stages(space, READERS[product])
    assert code == 2, said
    assert str(space.product(product)) in said
    assert "Traceback" not in said
    assert not space.product(stage(READERS[product]).makes).exists()


def test_every_digit_of_a_manifest_counts(part: Callable[..., Workspace], stages: Any) -> None:
    """A number among the facts that changed to another one is still a manifest; its maker's report knows better."""
    space = part("pretrain")
    path = space.product("shards") / artifacts.MANIFEST
    manifest = json.loads(path.read_text())
    manifest["facts"]["splits"]["validation"]["bytes"] += 1
    path.write_bytes(artifacts.dump_json(manifest))
    code, said = stages(space, "pretrain")
    assert code == 2
    assert "manifest.json: not the one that tokenize wrote" in said


@pytest.fixture
def stopped(part: Callable[..., Workspace], whole: Any) -> Workspace:
    """A training that lost its product: its resume points are still there."""
    whole.product("base")
    space = part("pretrain")
    for folder in sorted(whole.hidden("scratch", space).iterdir()):
        if not folder.name.startswith("pretrain-"):
            artifacts._remove(folder)
    return space


@pytest.mark.parametrize("file", ["record.json", "tensors-00001.safetensors"])
def test_a_damaged_resume_point_is_named_and_the_one_before_it_goes_on(
    stopped: Workspace, stages: Any, right: Callable[..., None], damage: Callable[..., None], file: str
) -> None:
    points = sorted((stopped.root / ".groundup" / "scratch").glob("pretrain-*/step-*"))
    assert len(points) == 2
    damage(points[-1] / file)
    code, said = stages(stopped, "pretrain")
    assert code == 2, said
    assert str(points[-1]) in said
    assert "delete it to go on from the one before it" in said
    assert not stopped.product("base").exists()
    artifacts._remove(points[-1])
    code, said = stages(stopped, "pretrain")
    assert code == 0, said
    assert f"continues from step {int(points[0].name[-8:])}" in said
    right(stopped, "pretrain")


def test_a_damaged_segment_of_the_crawl_store_is_not_delivered(
    part: Callable[..., Workspace], stages: Any, whole: Any, damage: Callable[..., None], right: Callable[..., None]
) -> None:
    """The store outlives its snapshots: what decays there would become a product with a right manifest."""
    space = part("acquire")
    whole.product("raw")
    whole.hidden("crawl", space)
    (segment,) = sorted((space.root / ".groundup" / "crawl").glob("**/*.warc.gz"))
    damage(segment)
    code, said = stages(space, "acquire")
    if code == 0:
        right(space, "acquire")
    else:
        assert segment.name in said
        assert "Traceback" not in said
        assert not space.product("raw").exists()


def test_a_damaged_frontier_of_the_crawl_is_an_error(part: Callable[..., Workspace], stages: Any, whole: Any) -> None:
    space = part("acquire")
    whole.product("raw")
    whole.hidden("crawl", space)
    (frontier,) = sorted((space.root / ".groundup" / "crawl").glob("**/frontier.sqlite"))
    content = bytearray(frontier.read_bytes())
    content[:200] = bytes(200)
    for path in frontier.parent.glob("frontier.sqlite*"):
        path.unlink()
    frontier.write_bytes(content)
    with pytest.raises(sqlite3.DatabaseError):
        sqlite3.connect(frontier).execute("SELECT count(*) FROM pages").fetchone()
    code, said = stages(space, "acquire")
    assert code != 0
    assert "not a database" in said
    assert not space.product("raw").exists()

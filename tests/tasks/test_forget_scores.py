"""Scores that were made of a forgotten page are found by the purge, also where an excerpt has only a few words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llm_core import artifacts
from llm_core.data import acquire, clean, forget_list
from llm_core.evaluation import questions
from llm_core.evaluation.benchmarks.docstrings import Benchmark, generate
from llm_core.evaluation.evaluate import SAMPLES
from llm_core.evaluation.rows import Row, write_rows
from llm_core.settings.acquire import AcquireConfig, EmbeddedSource
from llm_core.settings.clean import CleanConfig
from tasks import experiments, forget
from tasks.purge import holding, purge
from tasks.workspace import Workspace

PAGE = "http://pydoc.localhost/library/{}.html"


@pytest.fixture(scope="module")
def space(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace with raw and corpus of four modules that are all held out."""
    folder = tmp_path_factory.mktemp("forgotten")
    space = experiments.make_workspace(root, folder / "w", (root / "params.yaml").read_text(), cache=folder / "cache")
    scratch = folder / "scratch"
    scratch.mkdir()
    source = EmbeddedSource(modules=("calendar", "csv", "textwrap", "statistics"), topics=False)
    raw, corpus = space.product("raw"), space.product("corpus")
    config = AcquireConfig(sources=(source,), store=folder / "store")
    acquire.run(config, out=raw, scratch=scratch, emit=lambda _: None)
    settings = CleanConfig(workers=1, validation_share=0.49)
    clean.run(settings, raw=raw, rules=root / "rules", lists=root / "lists", heldout=folder, out=corpus,
              scratch=scratch, emit=lambda _: None)  # fmt: skip
    return space


def ids(space: Workspace, name: str, url: str) -> set[str]:
    return {row["id"] for row in pq.read_table(space.product("corpus") / f"{name}.parquet").to_pylist()
            if row["url"] == url}  # fmt: skip


def scores(folder: Path, rows: list[Row], samples: list[dict[str, str]]) -> forget.Place:
    """A product like evaluate's."""
    with artifacts.new_product(folder, "scores") as product:
        write_rows(product / "rows.parquet", rows)
        pq.write_table(pa.Table.from_pylist(samples, schema=SAMPLES), product / "samples.parquet")
    files = {path.name: path for path in folder.iterdir()}
    return forget.Place("scores", artifacts.digest(folder), files, folder=folder)


def about(bench: Benchmark, keys: set[str], *, wanted: bool) -> Benchmark:
    """The questions and cloze items that were made of these documents, or all others."""
    choices = tuple(item for item in bench.choices if (item.id in keys) is wanted)
    cloze = tuple(item for item in bench.cloze if (item.id.partition("-")[0] in keys) is wanted)
    return Benchmark(choices, cloze, 0, 0)


def test_a_few_words_in_old_scores_are_found(space: Workspace, tmp_path: Path) -> None:
    url = PAGE.format("calendar")
    bench = generate(space.product("corpus"), choices=400, cloze=200, seed=0)
    talks, pages = ids(space, "dialogues", url), ids(space, "documents", url)
    its, others = (about(bench, talks | pages, wanted=wanted) for wanted in (True, False))
    assert its.choices, "nothing was asked about the page"
    assert its.cloze
    assert others.choices
    texts = {
        row["url"]: row["text"] for row in pq.read_table(space.product("corpus") / "documents.parquet").to_pylist()
    }
    forget.forget(space, url)
    listed = forget_list.read(space.project / "forget.txt")
    asked: dict[str, Callable[[], forget.Place]] = {
        "a question": lambda: scores(
            tmp_path / "a", [], [{"model": "chat", "prompt": its.choices[0].question, "text": "x"}]
        ),
        "an answer that another question offered": lambda: scores(
            tmp_path / "b",
            [
                Row(
                    "chat",
                    "docstring_choice",
                    "likelihood",
                    "f" * 32,
                    "What?",
                    its.choices[0].choices[its.choices[0].answer],
                    0.0,
                )
            ],
            [],
        ),
        "the first words of the page, the last one cut": lambda: scores(
            tmp_path / "c", [], [{"model": "chat", "prompt": " ".join(texts[url].split()[:14])[:-2], "text": "x"}]
        ),
        "a row with the page's id": lambda: scores(
            tmp_path / "d", [Row("chat", "docstring_cloze", "likelihood", its.cloze[0].id, "x", "y", 0.0)], []
        ),
    }
    for what, make in asked.items():
        assert holding(make(), listed), what
    rest = [*questions.choice_baselines(others.choices), *questions.cloze_baselines(others.cloze)]
    own = {choice for item in its.choices for choice in item.choices}
    rest = [row for row in rest if row.answer not in own]
    start = " ".join(texts[PAGE.format("textwrap")].split()[:14])
    assert holding(scores(tmp_path / "e", rest, [{"model": "chat", "prompt": start, "text": "x"}]), listed) == []
    scores(space.product("scores"), questions.choice_baselines(its.choices[:1]), [])
    gone = purge(space)
    assert str(space.product("scores")) in {row["where"] for row in gone["products"]}
    assert not space.product("scores").exists()

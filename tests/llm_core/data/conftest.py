"""The embedded default, acquired, cleaned and tokenized once for all tests of this folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llm_core.contract import Event, Report
from llm_core.data import acquire, clean, tokenize
from llm_core.settings.acquire import AcquireConfig
from llm_core.settings.clean import CleanConfig
from llm_core.settings.tokenize import TokenizeConfig

SECRET = "hunter2-planted-secret"


class Stage:
    """A product with the report and events of the stage that made it."""

    def __init__(self, product: Path, report: Report, events: list[Event]) -> None:
        self.product, self.report, self.events = product, report, events


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="session")
def embedded_raw(tmp_path_factory: pytest.TempPathFactory, store: Path) -> Stage:
    """data/raw of the embedded default, made while a secret stands in the environment."""
    folder = tmp_path_factory.mktemp("raw")
    scratch = tmp_path_factory.mktemp("scratch")
    events: list[Event] = []
    os.environ["GROUNDUP_TEST_SECRET"] = SECRET
    try:
        config = AcquireConfig(store=store)
        report = acquire.run(config, out=folder / "raw", scratch=scratch, emit=events.append)
    finally:
        del os.environ["GROUNDUP_TEST_SECRET"]
    return Stage(folder / "raw", report, events)


@pytest.fixture(scope="session")
def embedded_corpus(tmp_path_factory: pytest.TempPathFactory, embedded_raw: Stage, root: Path) -> Stage:
    folder = tmp_path_factory.mktemp("corpus")
    events: list[Event] = []
    report = clean.run(
        CleanConfig(),
        raw=embedded_raw.product,
        rules=root / "rules",
        lists=root / "lists",
        heldout=root / "heldout",
        out=folder / "corpus",
        scratch=folder,
        emit=events.append,
    )
    return Stage(folder / "corpus", report, events)


@pytest.fixture(scope="session")
def embedded_shards(tmp_path_factory: pytest.TempPathFactory, embedded_corpus: Stage) -> Stage:
    folder = tmp_path_factory.mktemp("shards")
    events: list[Event] = []
    report = tokenize.run(
        TokenizeConfig(), corpus=embedded_corpus.product, out=folder / "shards", scratch=folder, emit=events.append
    )
    return Stage(folder / "shards", report, events)

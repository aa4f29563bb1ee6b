"""A Dask cluster of separate processes and an S3 server on loopback, raw data, and the data stages that run there."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llm_core import artifacts, cluster
from llm_core.contract import Emit, Report
from llm_core.data import clean, tokenize
from llm_core.data.document import RAW_DOCUMENTS
from llm_core.settings.clean import CleanConfig, FilterSettings, SourceSettings
from llm_core.settings.cluster import ClusterSettings
from llm_core.settings.tokenize import TokenizeConfig
from llm_core.storage import places, products

KEPT_OUT = """\
import os, sys
folder = os.environ["KEPT_OUT"]
def refuse(event, arguments):
    if event == "open" and str(arguments[0]).startswith(folder):
        raise PermissionError(f"a worker opened {arguments[0]}")
sys.addaudithook(refuse)
"""
WORDS = [
    "river",
    "market",
    "station",
    "garden",
    "harbour",
    "winter",
    "letter",
    "window",
    "kitchen",
    "morning",
    "teacher",
    "machine",
    "village",
    "question",
    "answer",
    "silver",
    "shadow",
    "number",
    "record",
    "street",
    "bridge",
    "forest",
    "island",
    "engine",
    "paper",
    "summer",
    "doctor",
    "animal",
    "colour",
    "history",
]


@dataclass
class DaskProcesses:
    """A scheduler and workers, each a process of its own."""

    folder: Path
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)
    killed: list[int] = field(default_factory=list)
    """What those that `replace_worker` killed ended with."""
    address: str = ""
    options: tuple[str, ...] = ()
    """Further options of workers."""
    environment: dict[str, str] = field(default_factory=dict)
    """Further variables of their environment."""

    def start(self, count: int = 2) -> DaskProcesses:
        self.scheduler = self._start("scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard")
        log = self.folder / "scheduler.log"
        while not (found := re.search(r"Scheduler at: +(tcp://\S+)", log.read_text())):
            assert self.scheduler.poll() is None, log.read_text()
            time.sleep(0.05)
        self.address = found[1]
        for _ in range(count):
            self.add_worker()
        return self

    def add_worker(self) -> subprocess.Popen[bytes]:
        options = ("--nthreads", "1", "--no-nanny", "--no-dashboard", "--host", "127.0.0.1", *self.options)
        self.workers.append(self._start("worker", self.address, *options))
        return self.workers[-1]

    def replace_worker(self) -> None:
        """Kill the oldest worker; a new one takes its place."""
        self.add_worker()
        victim = self.workers.pop(0)
        victim.kill()
        self.killed.append(victim.wait())

    def stop(self) -> None:
        for process in [*self.workers, self.scheduler]:
            process.kill()
            process.wait()

    def _start(self, what: str, *options: str) -> subprocess.Popen[bytes]:
        name = what if what == "scheduler" else f"worker-{len(self.workers)}"
        here = str(Path(__file__).parents[2])  # functions of the tests are sent by name
        environment = os.environ | {
            "OMP_NUM_THREADS": "1", "DASK_DISTRIBUTED__ADMIN__TICK__LIMIT": "1h", "PYTHONPATH": here,
        } | self.environment  # fmt: skip
        with open(self.folder / f"{name}.log", "wb") as log:
            return subprocess.Popen(
                [sys.executable, "-m", f"distributed.cli.dask_{what}", *options],
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env=environment,
            )


@pytest.fixture
def dask_processes() -> type[DaskProcesses]:
    """To start a cluster of another kind than `dask`."""
    return DaskProcesses


@pytest.fixture
def dask(tmp_path: Path) -> Iterator[DaskProcesses]:
    """Two workers, in a folder that is not the test's current directory."""
    (tmp_path / "dask").mkdir()
    found = DaskProcesses(tmp_path / "dask").start()
    yield found
    found.stop()


def prose(number: int) -> str:
    """A text of its own for each number, of some 120 words; a tenth differ from an earlier one in one word."""
    import random

    copied = number % 10 == 9
    rng = random.Random(number - 9 if copied else number)
    words = [rng.choice(WORDS) for _ in range(120)]
    if copied:
        words[60] = "altered"
    return " ".join(words) + "."


@pytest.fixture(scope="session")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """400 documents with copies and near copies, in row groups of 40: ten tasks and more."""
    folder = tmp_path_factory.mktemp("raw") / "raw"
    rows = [{"url": f"https://a.example/{n}", "text": prose(n % 380), "content_type": "text/plain"} for n in range(400)]
    with artifacts.new_product(folder, "raw", {"sources": {"a": {"kind": "files", "licence": "MIT"}}}) as product:
        (product / "a").mkdir()
        pq.write_table(
            pa.Table.from_pylist(rows, RAW_DOCUMENTS), product / "a" / "documents.parquet", row_group_size=10
        )
    return folder


@dataclass(frozen=True)
class Stages:
    """clean and tokenize into a folder; the digests of corpus and shards."""

    raw: Path
    folder: Path

    def clean(self, cluster: str | None, emit: Emit = lambda _: None) -> Report:
        for name in ("rules", "lists", "heldout", "scratch"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        (self.folder / "heldout" / "set.txt").write_text(" ".join(prose(17).split()[20:50]) + "\n")
        return clean.run(
            clean_config(cluster), raw=self.raw, out=self.folder / "corpus", scratch=self.folder / "scratch", emit=emit,
            **{name: self.folder / name for name in ("rules", "lists", "heldout")},
        )  # fmt: skip

    def tokenize(self, cluster: str | None, emit: Emit = lambda _: None) -> Report:
        return tokenize.run(
            TokenizeConfig(vocab_size=400, workers=1, cluster=where(cluster)),
            corpus=self.folder / "corpus", out=self.folder / "shards", scratch=self.folder / "scratch", emit=emit,
        )  # fmt: skip

    def digests(self) -> tuple[str, str]:
        return artifacts.digest(self.folder / "corpus"), artifacts.digest(self.folder / "shards")


def where(cluster: str | None) -> ClusterSettings:
    """One process here, or the cluster at an address."""
    return ClusterSettings(kind="dask", address=cluster) if cluster else ClusterSettings()


def clean_config(cluster: str | None) -> CleanConfig:
    """One process here, or the cluster at an address."""
    loose = SourceSettings(filters=FilterSettings(min_words=5, gopher_quality=False, gopher_repetition=False))
    return CleanConfig(default=loose, workers=1, cluster=where(cluster))


@pytest.fixture(scope="session")
def alone(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Digests of corpus and shards that one process makes."""
    stages = Stages(raw, tmp_path_factory.mktemp("alone"))
    report = stages.clean(None)
    assert report.metrics["near_duplicates"] > 10, "the data is what it should be"
    stages.tokenize(None)
    return stages.digests()


@pytest.fixture
def stages(raw: Path, tmp_path: Path) -> Callable[[str], Stages]:
    """Stages in a folder of this name."""
    return lambda name: Stages(raw, tmp_path / name)


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[object]:
    """An S3 server with a bucket, and an environment that names it."""
    pytest.importorskip("moto.server")
    pytest.importorskip("s3fs")
    import boto3

    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    import s3server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server, running = s3server.serve()
    for name, value in {
        "AWS_ACCESS_KEY_ID": "driver", "AWS_SECRET_ACCESS_KEY": "hushhush", "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{running.server_port}", "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": str(tmp_path / "none"), "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"),
        products.COPIES_VARIABLE: str(tmp_path / "copies"),
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    boto3.client("s3").create_bucket(Bucket="bucket")
    places.filesystem.cache_clear()
    yield server
    places.filesystem.cache_clear()
    running.shutdown()


@pytest.fixture
def dask_elsewhere(s3, dask_processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """Two workers under a name of their own that may open no file of the workspace; nobody minds a busy machine."""
    import dask

    patience = {f"distributed.comm.timeouts.{what}": "600s" for what in ("connect", "tcp")}
    for name in ("CONNECT_SECONDS", "WORKER_SECONDS", "LATE_SECONDS"):
        monkeypatch.setattr(cluster, name, 600.0)
    (tmp_path / "dask").mkdir()
    (tmp_path / "dask" / "kept_out.py").write_text(KEPT_OUT)
    found = dask_processes(tmp_path / "dask", options=("--preload", str(tmp_path / "dask" / "kept_out.py")))
    found.environment = {"AWS_ACCESS_KEY_ID": "worker", "KEPT_OUT": str(tmp_path / "here")}
    found.environment |= {f"DASK_{name.replace('.', '__').upper()}": value for name, value in patience.items()}
    with dask.config.set(patience):
        yield found.start()
        found.stop()
    assert not [
        line for log in (tmp_path / "dask").glob("*.log") for line in log.read_text().splitlines() if "hushhush" in line
    ]
    assert os.environ["AWS_ACCESS_KEY_ID"] == "driver"

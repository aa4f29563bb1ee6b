"""Where work is done is said in one place and makes nothing stale."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow as pa
import pytest
import yaml

from llm_core.contract import BadInput
from llm_core.data import spill
from llm_core.settings.cluster import ClusterSettings
from llm_core.storage.places import Place
from tasks.params import CLUSTER_VARIABLE, STORAGE_VARIABLE
from tasks.workspace import Workspace


@pytest.fixture
def place(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv(CLUSTER_VARIABLE, raising=False)
    shutil.copy(root / "dvc.yaml", tmp_path)
    shutil.copy(root / "params.yaml", tmp_path)
    return tmp_path


def write(place: Path, **sections: object) -> Workspace:
    known = yaml.safe_load((place / "params.yaml").read_text())
    (place / "params.yaml").write_text(yaml.safe_dump(known | sections))
    space = Workspace.at(place)
    space.configs()
    return space


def test_the_section_and_the_environment_say_where(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Workspace.at(place).config("clean").cluster == ClusterSettings()
    space = write(place, cluster={"kind": "dask", "address": "tcp://a:1"})
    for verb in ("clean", "tokenize"):
        assert space.config(verb).cluster.address == "tcp://a:1"
    own = write(place, tokenize={"cluster": {"kind": "dask", "address": "tcp://b:2"}})
    assert own.config("tokenize").cluster.address == "tcp://b:2"
    assert own.config("clean").cluster.address == "tcp://a:1"
    monkeypatch.setenv(CLUSTER_VARIABLE, "tcp://c:3")
    assert own.config("tokenize").cluster.address == "tcp://c:3"
    assert not hasattr(own.config("pretrain"), "cluster")
    monkeypatch.setenv(CLUSTER_VARIABLE, "nowhere")
    with pytest.raises(BadInput, match=r"GROUNDUP_CLUSTER: cluster.address = 'nowhere'"):
        own.config("clean")


def test_no_stage_depends_on_it(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from llm_core.pipeline import stage

    stages = yaml.safe_load((place / "dvc.yaml").read_text())["stages"]
    assert all("cluster" not in entry["params"] for entry in stages.values())
    before = Workspace.at(place).fingerprint(stage("clean"), {})
    after = write(place, cluster={"kind": "dask", "address": "tcp://a:1"})
    assert after.fingerprint(stage("clean"), {}) == before


def test_a_wrong_section_is_named(place: Path) -> None:
    with pytest.raises(BadInput, match=r"params.yaml: cluster = .*address is wanted where kind is dask"):
        write(place, cluster={"kind": "dask"})


def test_threads_of_a_worker_write_to_files_of_their_own(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor
    from threading import Barrier

    together, place = Barrier(4), Place(str(tmp_path))

    def lay_down(number: int) -> object:
        together.wait()
        record = spill.Record(0, f"u{number}", f"text {number}" * 500, "ab", None, fields={"n": number})
        return spill.write(place, 0, [record] * 20)

    with ThreadPoolExecutor(4) as pool:
        batches = list(pool.map(lay_down, range(4)))
    assert len({batch["part"][0].as_py() for batch in batches}) == 4
    for number, batch in enumerate(batches):
        found = list(spill.read(place, spill.places(pa.Table.from_batches([batch]))))
        assert found == [({"n": number}, f"text {number}" * 500)] * 20


def test_the_section_storage_says_where_files_lie_and_makes_nothing_stale(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from llm_core.pipeline import stage

    verbs = ("acquire", "clean", "tokenize")
    space = write(place, storage={"url": "s3://bucket/a"})
    assert [space.config(verb).storage.url for verb in verbs] == ["s3://bucket/a"] * 3
    before = Workspace.at(place).fingerprint(stage("clean"), {})
    assert write(place, storage={"url": "s3://bucket/b"}).fingerprint(stage("clean"), {}) == before
    monkeypatch.setenv(STORAGE_VARIABLE, "s3://bucket/c")
    assert write(place, storage={}).config("clean").storage.url == "s3://bucket/c"
    monkeypatch.delenv(STORAGE_VARIABLE)
    with pytest.raises(BadInput, match=r"params.yaml: storage.url = 'bucket'"):
        write(place, storage={"url": "bucket"})
    for secret in ("s3://me:hushhush@bucket/a", "s3://bucket/a?token=hushhush"):
        with pytest.raises(BadInput, match=r"storage\.url") as told:
            write(place, storage={"url": secret})
        assert "hushhush" not in str(told.value)

"""Data stages on a Dask cluster of separate processes: the bytes of one process, whatever becomes of the workers."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from llm_core import cluster
from llm_core.contract import BadInput, Event, Note, Progress
from llm_core.data.spill import Journal
from llm_core.settings.cluster import ClusterSettings
from llm_core.storage.places import Place


def double(number: int) -> int:
    return 2 * number


def patient(job: tuple[str, int]) -> int:
    """Waits as long as the file is there, but only in the process that wrote its id into it first."""
    path = Path(job[0])
    if job[1] == 3:
        try:
            path.with_suffix(".held").write_text(str(os.getpid())) if not path.with_suffix(".held").exists() else None
        finally:
            while path.exists() and path.with_suffix(".held").read_text() == str(os.getpid()):
                time.sleep(0.05)
    return job[1]


def end_yourself(number: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return number


def test_the_stages_make_the_same_bytes(dask, stages, alone) -> None:
    heard: list[Event] = []
    here = stages("here")
    report = here.clean(dask.address, heard.append)
    shards = here.tokenize(dask.address)
    assert here.digests() == alone
    assert sum(row["rows"] for row in report.tables["workers"]) == 400
    assert sum(row["bytes"] for row in shards.tables["workers"]) > 100_000
    told = [event.figures["workers"] for event in heard if isinstance(event, Progress) and "workers" in event.figures]
    assert told
    assert "/s" in str(told[-1])
    assert not (here.folder / "scratch" / "records").exists()


def test_a_killed_worker_and_one_that_comes_later_change_nothing(dask, stages, alone) -> None:
    here, deaths = stages("here"), iter((1, 5, 12))
    due, heard = next(deaths), 0

    def emit(event: Event) -> None:
        nonlocal due, heard
        if isinstance(event, Progress) and event.unit == "rows":
            heard += 1
            if heard == due:
                dask.replace_worker()
                due = next(deaths, -1)

    here.clean(dask.address, emit)
    assert due == -1, "three workers were killed"
    here.tokenize(dask.address)
    assert here.digests() == alone


def test_a_lost_scheduler_is_one_sentence_and_the_rerun_goes_on(dask, stages, alone) -> None:
    here = stages("here")

    def emit(event: Event) -> None:
        if isinstance(event, Progress) and event.unit == "rows" and event.done >= 100:
            dask.scheduler.kill()
            dask.scheduler.wait()

    with pytest.raises(BadInput, match=r"the Dask scheduler at tcp://.* was lost; run again once it is there"):
        here.clean(dask.address, emit)
    notes: list[Event] = []
    here.clean(None, notes.append)
    (note,) = [event.text for event in notes if isinstance(event, Note)]
    assert note.startswith("goes on behind")
    here.tokenize(None)
    assert here.digests() == alone


def test_a_late_batch_is_done_elsewhere(dask, tmp_path: Path) -> None:
    held = tmp_path / "held"
    held.touch()
    client = cluster._connect(dask.address)
    try:
        crew = cluster.DaskCrew(client, dask.address, seconds=0.01, late=1.0)
        jobs = [(str(held), number) for number in range(12)]
        assert list(crew.map(patient, jobs, units=lambda _: 1)) == list(range(12))
        assert crew.repeated >= 1
    finally:
        held.unlink()
        client.close()


def test_results_come_in_order_and_batches_grow(dask) -> None:
    with cluster.crew("dask", dask.address) as crew:
        assert list(crew.map(double, range(3_000), units=lambda _: 1)) == [2 * n for n in range(3_000)]
    assert sum(share.units for share in crew.shares.values()) == 3_000
    assert sum(share.batches for share in crew.shares.values()) < 300


def test_a_batch_that_ends_every_worker_is_named(dask) -> None:
    for _ in range(3):
        dask.add_worker()
    with (
        pytest.raises(BadInput, match="a batch ended every worker that took it"),
        cluster.crew("dask", dask.address) as crew,
    ):
        list(crew.map(end_yourself, [1], units=lambda _: 1))


def test_what_cannot_be_reached_is_named(monkeypatch: pytest.MonkeyPatch, dask) -> None:
    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 1.0)
    sentence = r"cluster.address: no Dask scheduler answers at tcp://127.0.0.1:9"
    with pytest.raises(BadInput, match=sentence), cluster.crew("dask", "tcp://127.0.0.1:9"):
        pass
    monkeypatch.setattr(cluster, "code_digest", lambda: "another")
    with (
        pytest.raises(BadInput, match="runs other code, Python or packages"),
        cluster.crew("dask", dask.address) as crew,
    ):
        list(crew.map(double, [1], units=lambda _: 1))


def test_settings() -> None:
    with pytest.raises(ValueError, match="address is wanted where kind is dask"):
        ClusterSettings(kind="dask")
    with pytest.raises(ValueError, match="address"):
        ClusterSettings(kind="dask", address="10.0.0.5:8786")


def test_a_journal_gives_what_is_whole(tmp_path: Path) -> None:
    from llm_core.data import spill

    folder = tmp_path / "records"
    journal = Journal(folder, "key")
    records = [spill.Record(0, f"u{n}", "text", "ab", None) for n in range(3)]
    place = Place(str(folder))
    first, second = spill.write(place, 0, records), spill.write(place, 0, records)
    journal.add(first)
    journal.add(second)
    whole = (folder / "journal").read_bytes()
    (folder / "journal").write_bytes(whole[:-5])
    again = Journal(folder, "key")
    assert [batch.num_rows for batch in again.read()] == [3]
    again.add(second)
    assert (folder / "journal").read_bytes() == whole
    (part,) = folder.glob("*.records")
    os.truncate(part, part.stat().st_size - 1)
    assert [batch.equals(first) for batch in Journal(folder, "key").read()] == [True], "records that are gone"
    assert list(Journal(folder, "another").read()) == []
    assert not part.exists()

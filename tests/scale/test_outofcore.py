"""Duplicates out of core are those in memory, whatever the limit; memory stays within it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from llm_core.data import dedup, neardup, spill
from llm_core.data.minhash import BYTES, FUNCTIONS, LOOKS, Signatures, band_keys
from llm_core.storage.places import Place


def signatures(count: int, seed: int, copied: float = 0.3) -> Signatures:
    """Random signatures, of which some are earlier ones with a few of their minima replaced."""
    rng = np.random.default_rng(seed)
    found = rng.integers(0, 1 << 16, (count, FUNCTIONS), dtype=np.uint16)
    for place in np.flatnonzero(rng.random(count) < copied)[1:]:
        found[place] = found[rng.integers(0, place)]
        changed = rng.random(FUNCTIONS) < rng.uniform(0, 0.45)
        found[place, changed] = rng.integers(0, 1 << 16, int(changed.sum()), dtype=np.uint16)
    return found


def in_memory(path: Path, rank: np.ndarray) -> list[int]:
    """The labels by dictionaries and scipy's components: nothing sorted, divided or joined by us."""
    found = np.fromfile(path, np.uint16).reshape(-1, FUNCTIONS)
    rows = np.flatnonzero(rank >= 0)
    rows = rows[np.argsort(rank[rows])]
    candidates: set[tuple[int, int]] = set()
    for band in range(LOOKS):
        groups: dict[int, list[int]] = {}
        for row, key in zip(rows.tolist(), band_keys(found[rows], band).tolist(), strict=True):
            group = groups.setdefault(key, [])
            candidates.update((other, row) for other in (*group[:1], *group[-1:]))
            group.append(row)
    alike = [(a, b) for a, b in candidates if (found[a] == found[b]).mean() >= 0.7]
    edges = rank[np.array(alike, np.int64).reshape(-1, 2)]
    count = int(rank.max(initial=-1)) + 1
    graph = coo_array((np.ones(len(edges)), edges.T), shape=(count, count)) if count else np.zeros((0, 0))
    least: dict[int, int] = {}
    components = connected_components(graph, directed=False)[1].tolist() if count else []
    return [least.setdefault(component, place) for place, component in enumerate(components)]


@pytest.mark.parametrize("memory", [10_000, 100_000, neardup.MEMORY])
def test_labels_are_those_in_memory(tmp_path: Path, memory: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neardup, "_CHUNK", 500)
    path = tmp_path / "signatures"
    path.write_bytes(signatures(3_000, 1).tobytes())
    rank = np.random.default_rng(2).permutation(4_000)[:3_000] - 500
    rank[rank < 0] = -1
    found = neardup.labels(path, rank, 0.7, tmp_path / "bands", memory).tolist()
    expected = in_memory(path, rank)
    assert found == expected
    assert len(set(expected)) < len(expected) - 300
    assert not (tmp_path / "bands").exists()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 60), st.integers(0, 10_000), st.sampled_from([400, 2_000, 10_000]))
def test_labels_of_few(tmp_path_factory: pytest.TempPathFactory, count: int, seed: int, memory: int) -> None:
    folder = tmp_path_factory.mktemp("few")
    (folder / "signatures").write_bytes(signatures(count, seed, 0.8).tobytes())
    rank = np.random.default_rng(seed).permutation(count)
    found = neardup.labels(folder / "signatures", rank, 0.7, folder / "bands", memory).tolist()
    assert found == in_memory(folder / "signatures", rank)


def test_one_signature_in_all_documents(tmp_path: Path) -> None:
    path = tmp_path / "signatures"
    path.write_bytes(np.repeat(signatures(1, 3), 5_000, axis=0).tobytes())
    assert set(neardup.labels(path, np.arange(5_000), 0.7, tmp_path / "bands", 20_000).tolist()) == {0}


def test_exact_duplicates_in_parts_are_those_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    count = 5_000
    (tmp_path / "signatures").write_bytes(signatures(count, 6).tobytes())
    index = dedup.Index(
        source=rng.integers(0, 3, count).astype(np.int32),
        size=rng.integers(1, 50, count).astype(np.int32),
        identity=np.stack([rng.integers(0, 3, count), rng.integers(0, 2_000, count)], axis=1).astype(np.uint64),
        address=rng.integers(0, 3_000, count).astype(np.uint64),
        signature=rng.permutation(count),
    )
    results = []
    for most in (dedup.MOST_AT_ONCE, 700):
        monkeypatch.setattr(dedup, "MOST_AT_ONCE", most)
        copies = dedup.Duplicates(index)
        left = copies.by_identity(copies.by_address(np.arange(count)))
        rest = copies.by_likeness(left, tmp_path / "signatures", 0.7)
        results.append(
            (
                left.tolist(),
                rest.tolist(),
                copies.of.tolist(),
                [*map(copies.reason, range(count))],
                copies.leaders().tolist(),
            )
        )
        assert 0 < len(rest) < len(left) < count
    assert results[0] == results[1]


@pytest.mark.parametrize("each", [1, 7, 1_000])
def test_the_index_is_the_same_from_batches_of_any_size(tmp_path: Path, each: int, monkeypatch) -> None:
    monkeypatch.setattr(spill, "_TOGETHER", 50)
    found = signatures(300, 9)
    records = [
        spill.Record(
            kind=number % 2,
            url=f"https://a.example/{number * 7919 % 300}",
            text=f"text {number}",
            identity=f"{number:032x}",
            reason="too_short" if number % 5 == 0 else None,
            signature=found[number].tobytes() if number % 3 else None,
        )
        for number in range(300)
    ]
    batch = spill.write(Place(str(tmp_path)), 0, records)
    (tmp_path / "found").mkdir()
    findings = spill.Findings(tmp_path / "found")
    for start in range(0, 300, each):
        findings.add(batch.slice(start, each))
    table, rows = findings.ordered()
    order = sorted(range(300), key=lambda number: (records[number].kind, records[number].url))
    assert table["url"].to_pylist() == [records[number].url for number in order]
    assert table["reason"].to_pylist() == [records[number].reason for number in order]
    assert table["id_low"].to_pylist() == order
    signed = np.fromfile(findings.signatures, np.uint16).reshape(-1, FUNCTIONS)
    for number, row in zip(order, rows.tolist(), strict=True):
        assert (row < 0) == (records[number].signature is None)
        assert row < 0 or (signed[row] == found[number]).all()
    assert sum(chunk.nbytes for chunk in table["url"].chunks) < 300 * 60, "its own values"


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300,000 signatures in a file of 67 MB."""
    path = tmp_path_factory.mktemp("many") / "signatures"
    with open(path, "wb") as file:
        for seed in range(10):
            file.write(signatures(30_000, seed, 0.02).tobytes())
    return path


LIMITED = """
import resource, sys
from pathlib import Path
import numpy as np
from llm_core.data import neardup

neardup._CHUNK = 1 << 13
path, allowed = Path(sys.argv[1]), 1_000_000 * int(sys.argv[2])
rank = np.arange(300_000)
taken = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmData")) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (taken + allowed, taken + allowed))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = neardup.labels(path, rank, 0.7, path.with_name("bands"), 5_000_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, len(np.unique(found)))
"""


def limited(path: Path, allowed_mb: int) -> subprocess.CompletedProcess[str]:
    """Sort in parts of 5 MB, in a process that gets no more than so much memory beyond what its modules took."""
    command = [sys.executable, "-c", LIMITED, str(path), str(allowed_mb)]
    return subprocess.run(command, capture_output=True, text=True)


def test_memory_stays_within_its_limit(many: Path) -> None:
    """Neither what the process may allocate nor the pages of files that it holds reach the size of the signatures."""
    done = limited(many, 48)
    assert done.returncode == 0, done.stderr
    grown, clusters = map(int, done.stdout.split())
    assert 200_000 < clusters < 297_000
    assert grown < 48_000, "kB; the signatures are 67,000, and whoever maps them has them all in memory before long"


def test_the_limit_would_be_noticed(many: Path) -> None:
    assert "MemoryError" in limited(many, 6).stderr


def test_a_file_of_signatures_that_is_cut_off_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "signatures"
    path.write_bytes(np.repeat(signatures(1, 3), 100, axis=0).tobytes())
    divide = neardup._divide

    def cut(*arguments: object) -> None:
        divide(*arguments)  # type: ignore[arg-type]
        with open(path, "r+b") as file:
            file.truncate(50 * BYTES)

    monkeypatch.setattr(neardup, "_divide", cut)
    with pytest.raises(EOFError):
        neardup.labels(path, np.arange(100), 0.7, tmp_path / "bands")

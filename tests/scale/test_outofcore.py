"""Duplicates out of core are those in memory, whatever the limit; memory stays within it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_core.data import dedup, neardup
from llm_core.data.minhash import FUNCTIONS, Signatures


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
    alike = rank[neardup.pairs(neardup.signatures_in(path), rank, 0.7)]
    return neardup.clusters(int(rank.max(initial=-1)) + 1, alike).tolist()


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
        results.append((left.tolist(), rest.tolist(), copies.of.tolist(), copies.reason, copies.leaders()))
        assert 0 < len(rest) < len(left) < count
    assert results[0] == results[1]


def test_memory_stays_within_its_limit(tmp_path: Path) -> None:
    """A process that may take 350 MB of address space beyond its modules sorts what would need far more at once."""
    path = tmp_path / "signatures"
    with open(path, "wb") as file:
        for seed in range(10):
            file.write(signatures(40_000, seed, 0.02).tobytes())
    code = (
        "import resource, sys, numpy as np; from pathlib import Path; from llm_core.data import neardup;"
        "path = Path(sys.argv[1]);"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss;"
        "found = neardup.labels(path, np.arange(400_000), 0.7, path.with_name('bands'), 10_000_000);"
        "after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss;"
        "print(after - before, len(np.unique(found)))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    grown, clusters = map(int, done.stdout.split())
    assert clusters < 396_000
    assert grown < 130_000, "kB; the signatures alone are 90,000, the keys of all bands in memory 270,000 more"

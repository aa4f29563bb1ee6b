"""A product is whole or absent, and any altered byte is found."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from llm_core import artifacts


def make(out: Path, text: str = "hello") -> None:
    with artifacts.new_product(out, "corpus", {"documents": 1}) as folder:
        (folder / "part").mkdir()
        (folder / "part" / "a.txt").write_text(text)


def test_a_product_appears_whole_and_verifies(tmp_path: Path) -> None:
    make(tmp_path / "corpus")
    artifacts.verify(tmp_path / "corpus")
    manifest = artifacts.read_manifest(tmp_path / "corpus", "corpus")
    assert manifest["files"]["part/a.txt"]["bytes"] == 5
    assert manifest["facts"] == {"documents": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["corpus"]


def test_equal_content_gives_equal_digests(tmp_path: Path) -> None:
    make(tmp_path / "one")
    make(tmp_path / "two")
    make(tmp_path / "three", "other")
    assert artifacts.digest(tmp_path / "one") == artifacts.digest(tmp_path / "two")
    assert artifacts.digest(tmp_path / "one") != artifacts.digest(tmp_path / "three")


def test_an_error_leaves_the_old_product(tmp_path: Path) -> None:
    make(tmp_path / "corpus")

    def fail_halfway() -> None:
        with artifacts.new_product(tmp_path / "corpus", "corpus") as folder:
            (folder / "half.txt").write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_halfway()
    artifacts.verify(tmp_path / "corpus")
    assert not (tmp_path / "corpus" / "half.txt").exists()


def test_a_kill_while_writing_leaves_nothing_that_looks_whole(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from llm_core import artifacts\n"
        "with artifacts.new_product(Path(sys.argv[1]), 'corpus') as folder:\n"
        "    (folder / 'a.txt').write_text('half'); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "corpus"])
    assert done.returncode == -signal.SIGKILL
    with pytest.raises(artifacts.BrokenProduct, match="no whole product"):
        artifacts.read_manifest(tmp_path / "corpus")
    make(tmp_path / "corpus")
    artifacts.verify(tmp_path / "corpus")


@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_damage_is_named(tmp_path: Path, damage: str) -> None:
    make(tmp_path / "corpus")
    victim = tmp_path / "corpus" / "part" / "a.txt"
    victim.unlink() if damage == "remove" else victim.write_text({"flip": "hellp", "cut": "hel"}[damage])
    with pytest.raises(artifacts.BrokenProduct, match=r"a\.txt"):
        artifacts.verify(tmp_path / "corpus")


def test_the_wrong_kind_is_refused(tmp_path: Path) -> None:
    make(tmp_path / "corpus")
    with pytest.raises(artifacts.BrokenProduct, match="'corpus', not 'shards'"):
        artifacts.read_manifest(tmp_path / "corpus", "shards")


def test_a_written_file_is_a_new_one(tmp_path: Path) -> None:
    """Products are hard-linked to a cache: writing must never go through the old inode."""
    path, link = tmp_path / "a", tmp_path / "link"
    path.write_text("old")
    os.link(path, link)
    artifacts.write_atomic(path, b"new")
    assert (path.read_text(), link.read_text()) == ("new", "old")

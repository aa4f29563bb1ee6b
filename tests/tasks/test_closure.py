"""Which code makes a stage stale: all it imports, directly or not, and nothing else."""

from __future__ import annotations

from pathlib import Path

from llm_core.pipeline import stage
from tasks.closure import code_files, path_digest


def test_indirect_imports_count_and_neutral_files_do_not(root: Path) -> None:
    names = {path.as_posix() for path in code_files(stage("pretrain"), root)}
    assert {"llm_core/train/pretrain.py", "llm_core/train/loop.py", "llm_core/model/transformer.py"} <= names
    assert "llm_core/settings/pretrain.py" in names, "a changed default must make the stage stale"
    assert not names & {"llm_core/contract.py", "llm_core/parallel.py", "llm_core/data/extract.py"}


def test_acquire_lists_no_code(root: Path) -> None:
    assert code_files(stage("acquire"), root) == []


def test_digest_of_a_folder_follows_names_and_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("1")
    before = path_digest(tmp_path)
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__" / "x.pyc").write_text("noise")
    assert path_digest(tmp_path) == before
    (tmp_path / "a.txt").rename(tmp_path / "b.txt")
    assert path_digest(tmp_path) != before

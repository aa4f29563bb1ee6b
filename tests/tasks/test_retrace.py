"""A project of its own, with git: its runs are built again to the byte, and a page is forgotten everywhere."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from warcio.archiveiterator import ArchiveIterator

from llm_core import artifacts
from llm_core.contract import BadInput
from tasks import forget, params, settings_again
from tasks.lineage import lineage
from tasks.purge import purge
from tasks.record import flatten
from tasks.reproduce import reproduce
from tasks.runner import child_environment
from tasks.workspace import Workspace

CODE = ("apps", "deployments", "flows", "heldout", "lists", "llm_core", "rules", "tasks")
FILES = ("dvc.yaml", "forget.txt", "params.yaml", ".dvcignore", ".gitignore")
TINY = {
    "acquire": {"sources": [{"kind": "embedded", "modules": ["json", "csv", "textwrap", "bisect"], "topics": False},
                            {"kind": "problems", "count": 60}]},
    "clean": {"validation_share": 0.2, "workers": 1},
    "tokenize": {"vocab_size": 320, "workers": 1},
    "pretrain": {"model": {"layers": 1, "width": 32, "heads": 2, "context": 32}, "steps": 4, "evaluate_every": 4,
                 "sample_tokens": 4, "threads": 1},
}  # fmt: skip
URL = "http://pydoc.localhost/library/json.html"


def git(project: Path, *arguments: str) -> None:
    who = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
    subprocess.run(["git", "-C", str(project), *who, *arguments], check=True, capture_output=True)


def run(project: Path, *command: str) -> None:
    """Build by one of the two doors: `dvc repro STAGE`, or `groundup run STAGE`."""
    done = subprocess.run([sys.executable, "-m", *command], cwd=project, capture_output=True, text=True,
                          env=child_environment(Path(os.devnull)))  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


@pytest.fixture(scope="module")
def project(workspace: Workspace, root: Path, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """The project's code in a repository of its own, built up to a base model of seconds; the session's servers."""
    assert workspace.root
    folder = tmp_path_factory.mktemp("retraced")
    for name in CODE:
        shutil.copytree(root / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copyfile(root / name, folder / name)
    (folder / "feedback").mkdir()
    (folder / "feedback" / "votes.jsonl").touch()
    (folder / ".dvc").mkdir()
    shutil.copyfile(root / ".dvc" / "config", folder / ".dvc" / "config")
    (folder / ".dvc" / "config").write_text("[core]\n    no_scm = true\n    analytics = false\n")
    (folder / "params.yaml").write_text(params.dump(params.overlay(params.read(root / "params.yaml"), TINY)))
    git(folder, "init", "--quiet")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "-m", "begun")
    run(folder, "dvc", "repro", "pretrain")
    return Workspace.at(folder)


def told(space: Workspace, target: str, *, only: bool = False) -> dict[str, Any]:
    return reproduce(space, target, only=only, tell=lambda _: None)


def test_a_model_is_built_again_to_the_byte(project: Workspace) -> None:
    before = {verb: project.report(verb).read_bytes() for verb in ("clean", "tokenize", "pretrain")}
    found = told(project, "base")
    assert [(row["product"], row["identical"], row["changes"]) for row in found["products"]] == [
        ("corpus", True, False),
        ("shards", True, False),
        ("base", True, False),
    ]
    assert found["identical"]
    assert found["versions"] == {}
    assert before == {verb: project.report(verb).read_bytes() for verb in before}
    seen = lineage(project, URL)
    assert {row["url"] for row in seen["conversations"]} == {URL}
    assert [(model["product"], model["saw"]) for model in seen["models"]] == [("base", True)]
    assert lineage(project, "base")["target"]["run"] == project.read_report("pretrain")["run"]["mlflow_run_id"]  # type: ignore[index]


def test_changes_that_were_never_committed_are_laid_over_the_commit(project: Workspace) -> None:
    settings = (project.root / "params.yaml").read_text()
    changed = params.overlay(params.read(project.root / "params.yaml"), {"tokenize": {"vocab_size": 310}})
    (project.root / "params.yaml").write_text(params.dump(changed))
    path = project.root / "llm_core" / "data" / "codepoints.py"
    code = path.read_text()
    path.write_text(f"{code}\n# a change that nobody committed\n")
    run(project.root, "dvc", "repro", "tokenize")
    digest = artifacts.digest(project.product("shards"))
    (project.root / "params.yaml").write_text(settings)
    path.write_text(code)
    found = told(project, digest, only=True)
    assert [(row["product"], row["identical"], row["changes"]) for row in found["products"]] == [("shards", True, True)]
    again = next(Path(found["folder"]).glob("*/params.yaml"))
    assert params.read(again)["tokenize"]["vocab_size"] == 310
    assert "nobody committed" in (again.parent / "llm_core" / "data" / "codepoints.py").read_text()


def test_another_outcome_is_said_and_its_files_are_named(project: Workspace) -> None:
    found = told(project, "corpus")  # what its checkout says is changed by hand, as if the code were not kept well
    tree = next(Path(found["folder"]).glob("*/llm_core/data/clean.py"))
    text = tree.read_text()
    changed = text.replace('"split": "xxh3-64', '"more": 1, "split": "xxh3-64', 1)
    assert changed != text
    tree.write_text(changed)
    found = told(project, "corpus", only=True)
    assert not found["identical"]
    assert found["products"][0]["differs"] == ["manifest.json"]


def test_what_cannot_be_reproduced_is_said_in_a_sentence(project: Workspace) -> None:
    with pytest.raises(BadInput, match="raw was fetched"):
        told(project, "raw")
    with pytest.raises(BadInput, match="no run, product, alias or experiment"):
        told(project, "nothing-of-that-name")


def test_a_page_is_forgotten_everywhere(project: Workspace) -> None:
    learned = artifacts.digest(project.product("base"))
    found = forget.forget(project, URL)
    assert found["models_from"] == "MLflow"
    assert learned in {model["digest"] for model in found["models"]}
    assert {model["product"] for model in found["models"]} == {"base"}
    lines = (project.root / "forget.txt").read_text()
    assert f"url {URL}\n" in lines
    assert forget.forget(project, URL)["new_lines"] == []
    assert forget.prove(project)["found"]  # nothing ran yet
    old = artifacts.digest(project.product("shards"))
    run(project.root, "flows.cli", "run", "tokenize")
    proof = forget.prove(project)
    assert str(project.product("shards")) not in proof["found"]
    assert any(old[:12] in where for where in proof["found"])  # the cache still has what was made before
    assert project.read_report("forget") == forget.prove(project, everywhere=False)
    for name in ("documents", "dialogues", "dropped"):
        rows = pq.read_table(project.product("corpus") / f"{name}.parquet").to_pylist()
        assert not [row for row in rows if row["url"] == URL and row.get("reason") != "forgotten"]
    assert held(project.root)
    gone = purge(project)
    assert gone["cache_objects"] > 0
    assert gone["store_pages"] >= 1
    assert held(project.root) == []
    assert forget.prove(project)["found"] == []
    assert set(gone) == {"products", "cache_objects", "store_pages", "resume_points", "reproductions"}
    assert not any(purge(project).values())
    missing = told(project, learned)
    assert not missing["identical"]
    assert missing["products"][0]["missing"] == ["raw"]
    seen = lineage(project, URL)
    assert learned in {model["digest"] for model in seen["models"]}
    assert {row["title"] for row in seen["documents"] + seen["conversations"]} == {None}
    other = lineage(project, URL.replace("json", "csv"))
    assert learned in {model["digest"] for model in other["models"]}
    assert all(row["fetched"] and row["licence"] for row in other["documents"])
    run(project.root, "dvc", "repro", "tokenize")
    assert held(project.root) == []


def held(project: Path) -> list[str]:
    """Files below the project in which a page's words can still be read: segments, tables and the addresses' list."""
    words = "JavaScript Object Notation"
    found = []
    for path in project.rglob("*"):
        if not path.is_file() or path.is_symlink() or path.stat().st_size == 0:
            continue
        with open(path, "rb") as file:
            start = file.read(4)
            if start[:2] == b"\x1f\x8b":
                file.seek(0)
                for record in ArchiveIterator(file):
                    if words.encode() in record.content_stream().read():
                        found.append(str(path))
                        break
            elif start == b"PAR1" and words in str(pq.read_table(path).to_pylist()):
                found.append(str(path))
    return found


def test_settings_are_read_back_from_their_words() -> None:
    settings = {"a": {"b": 1, "c": [1, 2], "d": None, "e": "text", "f": True}, "list": [{"x": 0.5}, {"x": "y"}]}
    assert settings_again.nested(flatten(settings)) == settings

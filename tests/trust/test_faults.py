"""Full disk, read-only directory, jumping clock, no memory, two runs at once: a clear error or the right product."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks import killing
from llm_core import artifacts
from llm_core.pipeline import VERBS, stage
from tasks.workspace import Workspace

LIMITS = (0, 300, 3_000, 30_000, 300_000)
"""Bytes that a file may have: from nothing at all to more than most files of a small run have."""
FEW = {"acquire": 30_000, "clean": 3_000, "tokenize": 3_000, "pretrain": 300_000, "collect": 3_000, "reward": 3_000}
LONGER = [(verb, limit) for verb in VERBS for limit in LIMITS if FEW.get(verb) != limit]


def full_disk(space: Workspace, verb: str, limit: int, stages: Any, right: Callable[..., None]) -> None:
    """Run a stage with files of at most `limit` bytes, then without."""
    code, said = stages(space, verb, largest_file=limit)
    if code == 0:
        right(space, verb)
        return
    assert code in (1, 2), (code, said)
    assert "File too large" in said or "full" in said or "I/O error" in said, said
    product = space.product(stage(verb).makes)
    assert not product.exists()
    assert not space.report(verb).exists()
    code, said = stages(space, verb)
    assert code == 0, said
    right(space, verb)
    assert not list(product.parent.glob(".*.part")), "the next attempt clears up"


@pytest.mark.parametrize(("verb", "limit"), FEW.items())
def test_a_full_disk(
    part: Callable[..., Workspace], stages: Any, right: Callable[..., None], verb: str, limit: int
) -> None:
    full_disk(part(verb), verb, limit, stages, right)


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("verb", "limit"), LONGER)
def test_a_full_disk_at_every_size(
    part: Callable[..., Workspace], stages: Any, right: Callable[..., None], verb: str, limit: int
) -> None:
    full_disk(part(verb), verb, limit, stages, right)


@pytest.mark.skipif(sys.platform != "linux", reason="privileges are dropped by Linux's capset")
@pytest.mark.parametrize("place", ["data", "reports", ".groundup/scratch"])
def test_a_read_only_directory(
    part: Callable[..., Workspace], stages: Any, right: Callable[..., None], place: str
) -> None:
    space = part("tokenize")
    folder = space.root / place
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o555)
    try:
        code, said = stages(space, "tokenize", no_privileges=True)
    finally:
        folder.chmod(0o755)
    assert code in (1, 2), said
    assert "Permission denied" in said
    assert place in said
    code, said = stages(space, "tokenize")
    assert code == 0, said
    right(space, "tokenize")


@pytest.mark.parametrize("verb", ["clean", "pretrain", "collect"])
def test_a_jumping_clock(part: Callable[..., Workspace], stages: Any, right: Callable[..., None], verb: str) -> None:
    space = part(verb)
    code, said = stages(space, verb, jumping_clock=7)
    assert code == 0, said
    right(space, verb)


def test_no_memory(part: Callable[..., Workspace], stages: Any, right: Callable[..., None]) -> None:
    """An allocation that fails is an error of the stage, not a shorter product."""
    space = part("tokenize")
    code, said = stages(space, "tokenize", little_memory=200_000)
    if code == 0:
        right(space, "tokenize")
        return
    assert said
    assert not space.product("shards").exists()
    assert stages(space, "tokenize")[0] == 0
    right(space, "tokenize")


def start(space: Workspace, verb: str) -> subprocess.Popen[str]:
    """The stage in a process of its own, as DVC starts it."""
    environment = killing.environment()
    environment.pop("MLFLOW_TRACKING_URI", None)
    return subprocess.Popen(
        [sys.executable, "-m", "tasks.run", verb],
        cwd=space.root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def test_a_worker_killed_for_memory(part: Callable[..., Workspace], stages: Any, right: Callable[..., None]) -> None:
    """The kernel kills a worker of `clean` when memory is out: no page may be missing from the corpus then."""
    space = part("clean", settings={"clean": {"workers": 2}})
    process = start(space, "clean")
    killed, deadline = False, time.monotonic() + 120
    while not killed and process.poll() is None and time.monotonic() < deadline:
        for worker in _workers(process.pid):
            worker.kill()
            killed = True
            break
        time.sleep(0.01)
    said = process.communicate()[0]
    assert killed, said
    if process.returncode != 0:
        assert "terminated abruptly" in said or "worker" in said, said
        assert not space.product("corpus").exists()
        code, said = stages(space, "clean")
        assert code == 0, said
    right(space, "clean")


def _workers(pid: int) -> list[psutil.Process]:
    """Processes of a pool; not the tracker of its shared memory."""
    found = []
    try:
        for child in psutil.Process(pid).children(recursive=True):
            words = " ".join(child.cmdline())
            if "tracker" not in words and any(word in words for word in ("spawn_main", "serve", "forkserver")):
                found.append(child)
    except psutil.Error:
        return []
    return found


def test_two_runs_at_once_in_one_workspace(part: Callable[..., Workspace], right: Callable[..., None]) -> None:
    """The second waits for the first; both end well, and the product is whole."""
    space = part("tokenize")
    runs = [start(space, "tokenize") for _ in range(2)]
    said = [run.communicate()[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], said
    right(space, "tokenize")


def test_two_runs_at_once_in_two_workspaces(
    part: Callable[..., Workspace], right: Callable[..., None], whole: Any
) -> None:
    """Two experiments share the project's crawl store; one waits for the other's crawl, and both get every page."""
    spaces = [part("acquire", name=name) for name in ("one", "two")]
    store = spaces[0].root.parent / "crawl"
    store.mkdir()
    for space in spaces:
        (space.root / ".groundup").mkdir(exist_ok=True)
        (space.root / ".groundup" / "crawl").symlink_to(store)
    runs = [start(space, "acquire") for space in spaces]
    said = [run.communicate()[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], said
    for space in spaces:
        right(space, "acquire")


def test_inputs_that_change_while_a_stage_runs(
    part: Callable[..., Workspace], stages: Any, right: Callable[..., None]
) -> None:
    """Somebody changes a setting while the tokenizer is at work: no shards of one and record of the other."""
    space = part("tokenize")
    original = (space.root / "params.yaml").read_bytes()
    codes: list[tuple[int, str]] = []
    run = threading.Thread(target=lambda: codes.append(stages(space, "tokenize")))
    run.start()
    artifacts.write_atomic(space.root / "params.yaml", original.replace(b"vocab_size: 512", b"vocab_size: 400"))
    run.join()
    ((code, said),) = codes
    assert code in (0, 2), said
    if code == 2:
        assert "were changed while it ran" in said
        assert not space.report("tokenize").exists()
    artifacts.write_atomic(space.root / "params.yaml", original)
    assert stages(space, "tokenize")[0] == 0
    right(space, "tokenize")


def test_what_was_written_last_is_what_is_read(part: Callable[..., Workspace]) -> None:
    """A product that is replaced is the old one or the new one to whoever reads at that moment."""
    out = part("acquire").root / "data" / "thing"
    stop, seen = threading.Event(), set()

    def look() -> None:
        while not stop.is_set():
            path = out / artifacts.MANIFEST
            if path.exists():
                seen.add(_kind(path))

    def write(number: int) -> None:
        with artifacts.new_product(out, f"kind-{number}") as folder:
            (folder / "a").write_text(str(number))

    write(0)
    reader = threading.Thread(target=look)
    reader.start()
    for number in range(1, 40):
        write(number)
    stop.set()
    reader.join()
    artifacts.verify(out)
    assert seen - {""} <= {f"kind-{number}" for number in range(40)}


def _kind(path: Path) -> str:
    try:
        return str(artifacts.read_manifest(path.parent)["kind"])
    except (FileNotFoundError, artifacts.BrokenProduct):
        return ""

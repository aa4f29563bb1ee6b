"""Cards are locked one process each, wait without holding any, and come back when their process is killed.

`nvidia-smi` is a script here: what is tested needs names of cards, no cards.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from tasks import gpus

HOLDER = """\
import sys, time
from tasks import gpus
with gpus.hold(int(sys.argv[1]), None, lambda: None) as names:
    print(*names, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def two_cards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho GPU-a\necho GPU-b\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.delenv(gpus.VISIBLE, raising=False)


def holder(count: int) -> subprocess.Popen[str]:
    """A process that holds `count` cards, once it does."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(count)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert len(process.stdout.readline().split()) == count
    return process


def test_a_stage_takes_as_many_cards_as_it_has_ranks(two_cards: None, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = {(device, ranks): gpus.needed(SimpleNamespace(device=device, ranks=ranks))
              for device in ("auto", "cpu") for ranks in (0, 1, 8)}  # fmt: skip
    assert wanted == {("auto", 0): 2, ("auto", 1): 1, ("auto", 8): 2, ("cpu", 0): 0, ("cpu", 1): 0, ("cpu", 8): 0}
    assert gpus.needed(SimpleNamespace()) == 0, "a stage without a device needs no card"
    monkeypatch.setenv(gpus.VISIBLE, "GPU-b")
    assert gpus.cards() == ["GPU-b"]
    monkeypatch.setenv(gpus.VISIBLE, "")
    assert gpus.cards() == []


def test_the_next_one_gets_the_other_card_and_sees_only_it(two_cards: None) -> None:
    first = holder(1)
    try:
        with gpus.hold(1, None, lambda: None) as names:
            assert names == ["GPU-b"]
            assert os.environ[gpus.VISIBLE] == "GPU-b"
        assert gpus.VISIBLE not in os.environ
    finally:
        first.kill()
        first.wait()


def test_who_waits_says_for_whom_holds_nothing_and_may_give_up(two_cards: None) -> None:
    class Enough(Exception):
        pass

    first, said = holder(1), []

    def give_up() -> None:
        with gpus.hold(1, None, lambda: None) as names:  # the free card is not held by who waits for both
            assert names == ["GPU-b"]
        raise Enough

    try:
        with pytest.raises(Enough), gpus.hold(2, said.append, give_up):
            pass
    finally:
        first.kill()
        first.wait()
    (text,) = said
    assert text.startswith(f"waits for a GPU: GPU-a is held by process {first.pid} in ")


def test_a_killed_process_gives_its_cards_back(two_cards: None) -> None:
    first = holder(2)
    began = time.monotonic()

    def kill_it() -> None:
        first.kill()
        assert time.monotonic() - began < 120, "the cards never came back"

    with gpus.hold(2, None, kill_it) as names:
        assert names == ["GPU-a", "GPU-b"]
    first.wait()


def test_a_machine_without_cards_locks_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    if not Path("/proc/driver/nvidia/version").exists():
        assert gpus.cards() == []
    with gpus.hold(0, None, lambda: None) as names:
        assert names == []

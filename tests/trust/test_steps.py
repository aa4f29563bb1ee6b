"""A kill or an error between any two steps of writing a product: whole, the old one or absent; never a half.

Every line of llm_core/artifacts.py and every call to the file system under it is a step (a tracer and an audit hook see
them). A fork dies, or gets an error, at step 1, at step 2, and so on, until one comes through.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from llm_core import artifacts

CALLS = ("open", "os.", "shutil.")
OLD, NEW = "what stood there before", "what is to stand there"
hooked: list[Callable[[str], None]] = []


def hook(event: str, _: Any) -> None:
    """Audit hooks cannot be taken away, so there is one, and it is told what to do."""
    if hooked and event.startswith(CALLS):
        hooked[0](event)


sys.addaudithook(hook)


def write(out: Path, text: str) -> None:
    with artifacts.new_product(out, "corpus", {"documents": 2}) as folder:
        (folder / "part").mkdir()
        (folder / "part" / "a.txt").write_text(text)
        (folder / "b.txt").write_text(text * 2)


def in_a_fork(work: Callable[[], None], step: int, at_step: Callable[[], None]) -> int:
    """Run `work` in a fork that does `at_step` at its step number `step`; its wait status. 0: it came to its end."""
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    left = [step]

    def count(_: str = "") -> None:
        left[0] -= 1
        if left[0] == 0:
            at_step()

    def trace(frame: Any, event: str, _: Any) -> Any:
        if frame.f_code.co_filename != artifacts.__file__:
            return None
        if event == "line":
            count()
        return trace

    code = 1
    try:
        hooked.append(count)
        sys.settrace(trace)
        work()
        code = 0
    except OSError:
        code = 3
    finally:
        sys.settrace(None)
        hooked.clear()
        os._exit(code)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def full() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def denied() -> None:
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def steps(folder: Path, at_step: Callable[[], None], before: str | None) -> Iterator[tuple[int, int, Path]]:
    """(step, status, product) for one step after the other, each in an untouched folder."""
    for step in range(1, 10_000):
        out = folder / str(step) / "corpus"
        out.parent.mkdir()
        if before:
            write(out, before)
        status = in_a_fork(lambda out=out: write(out, NEW), step, at_step)  # type: ignore[misc]
        yield step, status, out
        if status == 0:
            return
    raise AssertionError("it never came to its end")


def read(out: Path) -> str | None:
    """What a reader finds: None if there is no product. A half one is an error."""
    if not (out / artifacts.MANIFEST).exists():
        with pytest.raises(artifacts.BrokenProduct, match="no whole product here"):
            artifacts.verify(out)
        return None
    artifacts.verify(out)
    text = (out / "b.txt").read_text()
    assert text == 2 * (out / "part" / "a.txt").read_text()
    return text[: len(text) // 2]


@pytest.mark.parametrize(
    ("at_step", "before"),
    [(die, None), (die, OLD), (full, OLD), (denied, OLD)],
    ids=["die-new", "die", "full", "denied"],
)
def test_at_every_step(
    tmp_path: Path, at_step: Callable[[], None], before: str | None, record_property: Callable[[str, object], None]
) -> None:
    write(tmp_path / "right", NEW)
    found = []
    for step, status, out in steps(tmp_path, at_step, before):
        seen = read(out)
        assert seen in (None, before, NEW), (step, seen)
        assert seen == NEW or status != 0
        found.append((step, status))
        write(out, NEW)
        assert artifacts.digest(out) == artifacts.digest(tmp_path / "right")
        assert [path.name for path in out.parent.iterdir()] == ["corpus"], "the next writer clears up"
    assert len(found) > 50
    wanted = -signal.SIGKILL if at_step is die else 3
    assert [status for _, status in found] == [wanted] * (len(found) - 1) + [0]
    record_property(f"steps of writing a product, {at_step.__name__}, {before or 'nothing there'}", len(found) - 1)


@pytest.mark.parametrize("at_step", [die, full])
def test_a_small_file_is_the_old_or_the_new_one(tmp_path: Path, at_step: Callable[[], None]) -> None:
    path = tmp_path / "report.json"
    for step in range(1, 1000):
        path.write_text(OLD)
        status = in_a_fork(lambda: artifacts.write_atomic(path, NEW.encode()), step, at_step)
        assert path.read_text() in ((OLD, NEW) if status else (NEW,))
        if status == 0:
            assert step > 5
            return
    raise AssertionError("it never came to its end")

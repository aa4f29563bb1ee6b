"""The number of workers and the order in which they finish change nothing."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from multiprocessing import get_context

import psutil
import pytest

from llm_core import parallel


def slow_square(number: int) -> int:
    time.sleep(0.02 if number % 3 == 0 else 0)
    return number * number


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_results_come_in_the_order_of_the_inputs(workers: int) -> None:
    assert list(parallel.map_ordered(abs, range(-30, 0), workers=workers)) == list(range(30, 0, -1))


def test_any_executor_will_do() -> None:
    with ThreadPoolExecutor(4) as pool:
        assert list(parallel.map_ordered(slow_square, range(20), workers=4, executor=pool)) == [
            n * n for n in range(20)
        ]


def test_only_a_window_of_the_input_is_read_ahead() -> None:
    read = []

    def numbers() -> object:
        for number in range(100):
            read.append(number)
            yield number

    with ThreadPoolExecutor(2) as pool:
        results = parallel.map_ordered(slow_square, numbers(), workers=2, executor=pool)  # type: ignore[arg-type]
        next(results)
        assert len(read) <= 5
        list(results)


def test_batches() -> None:
    assert list(parallel.batched(range(5), 2)) == [[0, 1], [2, 3], [4]]


def failed(item: str, reason: str) -> object:
    return item, reason


def evaluated(items: list[str], seconds: float = 30.0) -> list[object]:
    """Items are Python expressions: whatever a page could do to a parser, they do to the child."""
    return parallel.isolated(eval, items, seconds=seconds, failed=failed)


IN_C_FOR_AGES = "sum(range(10 ** 13))"
"""Does not return to the interpreter, so that no handler of a signal would ever run."""
SEGFAULT = "__import__('ctypes').string_at(0)"


def test_an_item_that_hangs_in_c_costs_that_item_alone() -> None:
    items = ["1 + 1", IN_C_FOR_AGES, "2 + 2", "__import__('time').sleep(600)", "3 + 3"]
    began = time.monotonic()
    expected = [2, (IN_C_FOR_AGES, "timeout"), 4, (items[3], "timeout"), 6]
    assert evaluated(items, seconds=0.5) == expected
    assert time.monotonic() - began < 300, "nothing was waited for to its end"


@pytest.mark.parametrize("death", [SEGFAULT, "__import__('os')._exit(0)", "__import__('os').kill(0, 9)"])
def test_an_item_that_ends_its_process_costs_that_item_alone(death: str) -> None:
    if "kill" in death:
        death = "__import__('os').kill(__import__('os').getpid(), 9)"  # as the kernel does when memory runs out
    assert evaluated([death, "1", "'x' * 300_000", death]) == [(death, "crashed"), 1, "x" * 300_000, (death, "crashed")]
    assert evaluated(["5"]) == [5]


def test_the_child_is_kept_and_a_dead_idle_one_is_replaced_without_blame() -> None:
    pid = "__import__('os').getpid()"
    first = evaluated([pid])[0]
    assert evaluated([pid]) == [first]
    assert first != os.getpid()
    os.kill(int(str(first)), signal.SIGKILL)
    assert evaluated(["7", "8"]) == [7, 8]


def test_what_a_function_raises_is_raised_and_the_child_lives_on() -> None:
    with pytest.raises(ZeroDivisionError):
        evaluated(["1", "1 / 0"])
    with pytest.raises((AttributeError, pickle.PicklingError), match="pickle"):
        evaluated(["lambda: 0"])
    assert evaluated(["3"]) == [3]


def test_children_end_with_their_thread() -> None:
    with ThreadPoolExecutor(2) as pool:
        pids = [pid for [pid] in pool.map(evaluated, [["__import__('os').getpid()"]] * 4)]
    assert not any(psutil.pid_exists(int(str(pid))) for pid in pids)


def test_isolation_works_in_any_executor() -> None:
    work = partial(parallel.isolated, eval, seconds=30.0, failed=divmod)  # a `failed` that processes can import
    batches = [[f"{n} + {k}" for k in range(3)] for n in range(6)]
    expected = [[n + k for k in range(3)] for n in range(6)]
    for pool in (ThreadPoolExecutor(3), ProcessPoolExecutor(2, mp_context=get_context("forkserver"))):
        with pool:
            assert list(parallel.map_ordered(work, batches, workers=2, executor=pool)) == expected


def test_a_function_that_cannot_be_started_is_an_error() -> None:
    class Unknown:
        """Cannot be imported by name in the child: its unpickling fails there."""

        def __reduce__(self) -> tuple[object, ...]:
            return (__import__, ("no_such_module_anywhere",))

        def __call__(self, item: str) -> str:
            return item

    with pytest.raises(RuntimeError, match="crashed"):
        parallel.isolated(Unknown(), ["x"], seconds=5, failed=failed)


def test_a_child_ends_when_its_parent_is_killed() -> None:
    code = (
        "import time; from llm_core.parallel import isolated; pid = '__import__(\"os\").getpid()';"
        "print(isolated(eval, [pid], seconds=60, failed=divmod)[0], flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    child.wait(60)
    assert not child.is_running()

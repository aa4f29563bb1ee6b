"""The number of workers and the order in which they finish change nothing."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

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

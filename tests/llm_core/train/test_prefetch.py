"""Batches made early are the same batches."""

from __future__ import annotations

import threading

import pytest
import torch

from llm_core.train.batches import TokenBatch
from llm_core.train.prefetch import AHEAD, Prefetched


def test_each_rank_gets_its_batches_and_the_next_are_in_the_making() -> None:
    made: list[int] = []

    def batch(number: int) -> TokenBatch:
        made.append(number)
        return TokenBatch(torch.full((1, 2), number), torch.full((1, 2), -number))

    early = Prefetched(batch, torch.device("cpu"), stride=2)
    assert [int(early(n).inputs_BT[0, 0]) for n in (1, 3, 5)] == [1, 3, 5]
    assert int(early(20).targets_BT[0, 0]) == -20, "out of turn, as after a resume"
    early.close()
    assert len(made) == len(set(made)), "nothing is made twice"
    assert set(made) <= {1, 3, 5, 5 + 2, 5 + 2 * AHEAD, 20, 22, 24}


def test_an_error_reaches_who_asks_for_that_batch() -> None:
    def batch(number: int) -> int:
        if number == 2:
            raise ValueError("batch 2 is broken")
        assert threading.current_thread() is not threading.main_thread()
        return number

    early = Prefetched(batch, torch.device("cpu"))
    assert (early(0), early(1)) == (0, 1)
    with pytest.raises(ValueError, match="batch 2 is broken"):
        early(2)
    early.close()

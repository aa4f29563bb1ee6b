"""What beats say of ranks: silent, stuck, slow; and what is only waiting."""

from __future__ import annotations

import pytest

from llm_core.train.judge import SURE, Beat, Judge

HUNG_S = 30.0


def beats(world: int = 4) -> list[Beat]:
    return [
        Beat(f"node{rank // 2}", 100 + rank, step=7, turn=3, part=2, what="computes batch 9") for rank in range(world)
    ]


def watch(
    judge: Judge, now: list[Beat], seconds: float, *, start: float = 0.0, silent: int = -1
) -> tuple[str, list[int]]:
    """Look every second; all but `silent` tick."""
    found: tuple[str, list[int]] = ("", [])
    second = 0
    while second < seconds and not found[0]:
        for rank, beat in enumerate(now):
            beat.tick += rank != silent
        found = judge.look([Beat.read(beat.text()) for beat in now], start + second)
        second += 1
    return found


def test_a_rank_without_a_sign_of_life_is_named_in_time() -> None:
    sentence, who = watch(Judge(4, HUNG_S), beats(), 2 * HUNG_S, silent=2)
    assert who == [2]
    assert sentence == ("for 30 s no sign of life from rank 2 on node1 (process 102; step 7: computes batch 9)")


def test_a_rank_that_never_began_is_named() -> None:
    judge, there = Judge(2, HUNG_S), beats(2)
    assert judge.look([there[0], None], 0.0) == ("", [])
    there[0].tick += 1
    assert judge.look([there[0], None], HUNG_S + 1) == ("for 30 s no sign of life from rank 1 (it never began)", [1])


def test_of_ranks_that_all_live_the_last_one_keeps_the_others_waiting() -> None:
    there = beats()
    there[3].part, there[3].what, there[3].place = 1, "loads batch 9", "batches.py:88 (rows)"
    sentence, who = watch(Judge(4, HUNG_S), there, 3 * HUNG_S)
    assert who == [3]
    assert "nothing moves any more; the others wait for rank 3 on node1" in sentence
    assert "loads batch 9, in batches.py:88 (rows)" in sentence


def test_ranks_that_move_or_may_take_long_or_have_ended_are_left_alone() -> None:
    judge, there = Judge(4, HUNG_S), beats()
    for minute in range(5):
        for beat in there:
            beat.turn += 1
        assert watch(judge, there, 20, start=60.0 * minute) == ("", [])
    there[0].patient, there[0].what = True, "evaluates"
    assert watch(judge, there, 10 * HUNG_S, start=1000.0) == ("", [])
    assert watch(judge, there, 2 * HUNG_S, start=2000.0, silent=0)[1] == [0], "but it has to live"
    there[1].left = True
    there[0].patient = False
    assert watch(Judge(4, HUNG_S), there, 10 * HUNG_S, silent=1) == ("", [])


def train(judge: Judge, there: list[Beat], own: list[float], windows: int, start: float) -> list[str]:
    """Windows of ten steps with these seconds of own work a step; the news."""
    for window in range(windows):
        for beat, seconds in zip(there, own, strict=True):
            beat.tick, beat.turn, beat.step = beat.tick + 1, beat.turn + 10, beat.step + 10
            beat.own, beat.loading = beat.own + 10 * seconds, beat.loading + seconds
        judge.look([Beat.read(beat.text()) for beat in there], start + 10.0 * window)
    return judge.news()


def test_a_slow_rank_is_named_once_with_its_factor_and_taken_back() -> None:
    judge, there = Judge(4, HUNG_S), beats()
    assert train(judge, there, [0.1] * 4, 10, 0.0) == []
    slow = [0.1, 0.1, 0.24, 0.1]
    assert train(judge, there, slow, SURE - 1, 100.0) == [], "once is no habit"
    (told,) = train(judge, there, slow, 5, 200.0)
    assert told.startswith("rank 2 on node1 is slow: its own part of a step takes 240 ms, 2.4 times the others' 100 ms")
    assert "24 ms of it go into loading" in told
    assert judge.slowest == (2, pytest.approx(2.4))
    assert train(judge, there, [0.1] * 4, 5, 300.0) == ["rank 2 on node1 is as fast as the others again"]


def test_small_differences_and_tiny_steps_are_no_news() -> None:
    judge, there = Judge(4, HUNG_S), beats()
    assert train(judge, there, [0.1, 0.12, 0.14, 0.09], 10, 0.0) == []
    assert train(judge, there, [0.0001, 0.0001, 0.001, 0.0001], 10, 200.0) == []

"""What the beats of several ranks say: who stands still, who is slow. Nothing here waits, sends or knows a clock."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass

SLOW = 1.5
"""Times the others' median from which a rank is named as slow."""
SURE = 3
"""Windows in a row that a rank has to be slow before it is named, or quick before that is taken back."""
WINDOW_S, WINDOW_STEPS = 2.0, 5
"""A window of the comparison is at least so long, in seconds and in steps."""
LEAST_S = 0.002
"""Own work of less than this a step is too short for a factor to say anything."""


@dataclass
class Beat:
    """What a rank tells of itself. `turn` and `part` say how far it is, `what` the same for people.

    `own` are the seconds of its own work so far, of which `loading` went into batches; `patient`: it may take long;
    `left`: it has done what the others wait for.
    """

    host: str
    pid: int
    tick: int = 0
    turn: int = 0
    part: int = 0
    step: int = 0
    what: str = "begins"
    place: str = ""
    own: float = 0.0
    loading: float = 0.0
    patient: bool = False
    left: bool = False

    @property
    def far(self) -> tuple[int, int]:
        """How far the rank is; comparable among ranks."""
        return self.turn, self.part

    def text(self) -> str:
        """As it travels."""
        return json.dumps(asdict(self))

    @classmethod
    def read(cls, text: bytes | str) -> Beat:
        """What `text` made."""
        return cls(**json.loads(text))


class Judge:
    """Looks at the beats of all ranks again and again; `seconds` is how long one may stand still."""

    def __init__(self, world: int, seconds: float) -> None:
        self.world, self.seconds = world, seconds
        self.slowest: tuple[int, float] | None = None
        self._alive: dict[int, tuple[int, float]] = {}
        self._moved: tuple[object, float] = (None, 0.0)
        self._window: tuple[float, list[Beat]] | None = None
        self._slow_for = dict.fromkeys(range(world), 0)
        self._named: set[int] = set()
        self._news: list[str] = []

    def look(self, beats: Sequence[Beat | None], now: float) -> tuple[str, list[int]]:
        """The sentence that says who stands still, and who that is; ("", []) if nobody does.

        `now` in seconds of any clock that does not jump; None stands for a rank that has not beaten yet.
        """
        there = [beat for beat in beats if beat is not None]
        if len(there) == self.world:
            self._compare(there, now)
        silent = [rank for rank, beat in enumerate(beats) if self._silent(rank, beat, now)]
        if silent:
            return self._sentence(silent, beats, "no sign of life from"), silent
        if len(there) < self.world or any(beat.patient or beat.left for beat in there):
            self._moved = (None, now)
            return "", []
        position = [beat.far for beat in there]
        if position != self._moved[0]:
            self._moved = (position, now)
        elif now - self._moved[1] > self.seconds:
            last = [rank for rank, beat in enumerate(there) if beat.far == min(position)]
            behind = "nothing moves any more; the others wait for" if len(last) < self.world else "nothing moves in"
            return self._sentence(last, beats, behind), last
        return "", []

    def news(self) -> list[str]:
        """What there is to say of slow ranks since the last call."""
        news, self._news = self._news, []
        return news

    def _silent(self, rank: int, beat: Beat | None, now: float) -> bool:
        if beat is not None and beat.left:
            return False
        tick = -1 if beat is None else beat.tick
        seen, since = self._alive.get(rank, (None, now))
        if tick != seen:
            self._alive[rank] = (tick, now)
            return False
        return now - since > self.seconds

    def _sentence(self, ranks: list[int], beats: Sequence[Beat | None], how: str) -> str:
        told = []
        for rank in ranks:
            beat = beats[rank]
            if beat is None:
                told.append(f"rank {rank} (it never began)")
                continue
            place = f", in {beat.place}" if beat.place else ""
            told.append(f"rank {rank} on {beat.host} (process {beat.pid}; step {beat.step}: {beat.what}{place})")
        return f"for {self.seconds:g} s {how} {', '.join(told)}"

    def _compare(self, beats: list[Beat], now: float) -> None:
        if self._window is None or any(beat.left for beat in beats):
            self._window = (now, [Beat(**asdict(beat)) for beat in beats])
            return
        began, before = self._window
        steps = min(beat.step - old.step for beat, old in zip(beats, before, strict=True))
        if now - began < WINDOW_S or steps < WINDOW_STEPS:
            return
        self._window = (now, beats)
        each, loading = [], []
        for beat, old in zip(beats, before, strict=True):
            each.append((beat.own - old.own) / (beat.step - old.step))
            loading.append((beat.loading - old.loading) / (beat.step - old.step))
        for rank, seconds in enumerate(each):
            usual = max(statistics.median(each[:rank] + each[rank + 1 :]), LEAST_S / SLOW)
            self._judge(rank, seconds, usual, loading[rank], beats[rank])
        rank = max(range(self.world), key=lambda rank: each[rank])
        self.slowest = rank, each[rank] / max(statistics.median(each[:rank] + each[rank + 1 :]), 1e-9)

    def _judge(self, rank: int, seconds: float, usual: float, loading: float, beat: Beat) -> None:
        """Count windows in which the rank was slow, up to SURE, and down again; tell when that is full or empty."""
        slow = seconds > SLOW * usual and seconds > LEAST_S
        self._slow_for[rank] = min(SURE, max(0, self._slow_for[rank] + (1 if slow else -1)))
        if self._slow_for[rank] == SURE and rank not in self._named:
            self._named.add(rank)
            self._news.append(
                f"rank {rank} on {beat.host} is slow: its own part of a step takes {seconds * 1000:.3g} ms, "
                f"{seconds / usual:.1f} times the others' {usual * 1000:.3g} ms; {loading * 1000:.3g} ms of it go into "
                "loading"
            )
        elif self._slow_for[rank] == 0 and rank in self._named:
            self._named.remove(rank)
            self._news.append(f"rank {rank} on {beat.host} is as fast as the others again")

"""The keeper: while `groundup up` stands, it starts again what died and tells whom it should when a run ends badly.

`python -m deployments.keeper PROJECT`; `groundup up` starts it and `groundup down` ends it first. It imports nothing
heavy: it is there all the time.
"""

from __future__ import annotations

import signal
import sys
import time
from collections import deque
from pathlib import Path

from deployments import notices, servers

LOOK_EVERY_S = 1.0
MOST_DEATHS, WITHIN_S = 5, 300.0
"""A server that dies more often is left alone: it would die again, and its log says why."""


class Keeper:
    """Looks after one project's servers."""

    def __init__(self, project: Path) -> None:
        self.project = project
        self.deaths: deque[float] = deque(maxlen=MOST_DEATHS)
        self.notices = notices.Notices(project)

    def look(self) -> None:
        """One look: what died is started again, what ended is told."""
        if not self._dying_all_the_time():
            for name in servers.revive(self.project):
                self.deaths.append(time.monotonic())
                self.say(f"{name} had died and was started again")
                if self._dying_all_the_time():
                    self.say(f"{MOST_DEATHS} deaths within {WITHIN_S:.0f} s: nothing is started again for a while")
        for text in self.notices.look():
            self.say(text)

    def _dying_all_the_time(self) -> bool:
        return len(self.deaths) == MOST_DEATHS and time.monotonic() - self.deaths[0] < WITHIN_S

    def say(self, text: str) -> None:
        """A line of .run/keeper.log."""
        print(f"{time.strftime('%Y-%m-%dT%H:%M:%S')} {text}", flush=True)


def main(arguments: list[str]) -> int:
    """Look after the project named by the one argument until SIGTERM."""
    keeper = Keeper(Path(arguments[0]).resolve())
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    while True:
        try:
            keeper.look()
        except (OSError, servers.ServerFailed) as error:
            keeper.say(f"{type(error).__name__}: {error}")
        time.sleep(LOOK_EVERY_S)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Refresh, build, vote, feedback, again and again: nothing that lives on grows, in memory or on disk.

    python -m benchmarks.trust --only cycles --minutes 60

A small site changes a page a cycle. Each cycle refreshes it, builds, votes on the voting page through its own API,
makes the votes into a model and gives back what is no longer needed. Servers, worker, keeper and voting page live
through all cycles; their memory, and what lies on disk, are measured after each. Records grow by design (a run more in
MLflow and in Prefect, a changed page more in the crawl store): there the growth of a cycle must stay what it was.
"""

from __future__ import annotations

import functools
import http.server
import os
import random
import statistics
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import psutil

from benchmarks import killing
from deployments import servers, supervisor
from tasks.workspace import Workspace

PAGES = 20
VOTES = 10
"""Votes a cycle."""
SLACK_MB = 40.0
"""What a process, or a folder that must stay flat, may grow by in all, beside a tenth of its size."""
STEADIER = 1.5
"""How many times as much a record may grow in a cycle of the second half as in one of the first."""
COMMANDS = ("run", "feedback")
FLAT, RECORDS = ("products", "cache"), ("crawl store", "MLflow", "Prefect", "the rest")
WORDS = [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in "aeiou" for c in ("n", "r", "st", "l", "mp")]
CHANGES: dict[str, Any] = {
    "collect": {"prompts": 60, "min_votes": 4, "min_seconds": 0.0},
    "clean": {"sources": {"site": {"filters": {"min_words": 10, "gopher_quality": False, "gopher_repetition": False}}}},
}


@dataclass
class Cycle:
    """What was measured after a cycle, in MB by process and by folder, and what the cycle did."""

    seconds: float
    memory: dict[str, float]
    disk: dict[str, float]
    states: dict[str, list[str]] = field(default_factory=dict)


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Say nothing."""


class Site:
    """Pages in a folder, served on loopback; each write moves the file's time on, so that a refresh sees it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._clock, self.url = folder, 1_700_000_000, ""

    def write(self, number: int) -> None:
        """A page with new words; the first one links to all."""
        self._clock += 60
        words = " ".join(random.Random(f"{number} {self._clock}").choices(WORDS, k=150))
        links = " ".join(f'<a href="page{n}.html">page {n}</a>' for n in range(1, PAGES)) if number == 0 else ""
        path = self.folder / f"page{number}.html"
        path.write_text(f"<html><head><title>Page {number}</title></head><body><p>{words}.</p>{links}</body></html>")
        os.utime(path, (self._clock, self._clock))

    @contextmanager
    def served(self) -> Iterator[Site]:
        """Serve until the block ends."""
        for number in range(PAGES):
            self.write(number)
        handler = functools.partial(_Quiet, directory=str(self.folder))
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            self.url = f"http://127.0.0.1:{server.server_port}/page0.html"
            yield self
            server.shutdown()


def run(code: Path, folder: Path, *, minutes: float, least: int = 3) -> list[Cycle]:
    """Cycles for so many minutes, `least` of them in any case, in a project of its own on a copy of `code`.

    It has its own servers, whatever the environment names.
    """
    environment = dict(os.environ)
    for variable in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI", "PREFECT_HOME"):
        os.environ.pop(variable, None)
    (folder / "code").mkdir()
    (folder / "site").mkdir()
    with Site(folder / "site").served() as site:
        space = _project(killing.copy_code(code, folder / "code"), folder / "project", site.url)
        try:
            supervisor.up(space.root, lambda _: None)
            found: list[Cycle] = []
            began = time.monotonic()
            while len(found) < least or time.monotonic() - began < 60 * minutes:
                found.append(_cycle(space, site, len(found)))
            return found
        finally:
            servers.stop(space.root)
            os.environ.clear()
            os.environ.update(environment)


def _project(code: Path, root: Path, url: str) -> Workspace:
    web = {"kind": "web", "name": "site", "start": [url], "contact": "tests@example.org", "delay_seconds": 0,
           "allow_private": ["127.0.0.1"]}  # fmt: skip
    sources = [web, *killing.SMALL["acquire"]["sources"]]
    space = killing.workspace(code, root, {"acquire": {"sources": sources}, **CHANGES})
    (root / "feedback").unlink()  # a link to the code's
    (root / "feedback").mkdir()
    (root / "feedback" / "votes.jsonl").touch()
    return space


def _cycle(space: Workspace, site: Site, number: int) -> Cycle:
    began = time.monotonic()
    states: dict[str, list[str]] = {}
    if number:
        site.write(1 + number % (PAGES - 1))
        assert killing.groundup(space, "refresh", "--no-build", "--json")["changed"], "the changed page was not seen"
    for name in COMMANDS:
        told = killing.groundup(space, name, "--json")["states"]
        states[name] = sorted(verb for verb, state in told.items() if state == "ran")
        if name == "run":
            _vote(space, number)
    killing.groundup(space, "gc", "--days", "0", "--json")
    return Cycle(round(time.monotonic() - began, 1), memory(space.root), disk(space.root), states)


def _vote(space: Workspace, number: int) -> None:
    """Ask and vote on the page that `groundup up` keeps, as a browser does."""
    from gradio_client import Client

    client = Client(servers.running(space.root)[servers.CHAT.name], verbose=False)
    for vote in range(VOTES):
        word = WORDS[(number * VOTES + vote) % len(WORDS)]
        client.predict(f"How long is the word {word}?", "any", "any", api_name="/ask")
        name = ("vote_left", "vote_right")[vote % 2]
        told = client.predict("soak", "", "", None, api_name=f"/{name}")
        assert "Saved" in str(told), told


def memory(root: Path) -> dict[str, float]:
    """MB that the project's servers, with all their children, hold by themselves (USS), by server."""
    found = {}
    for server in servers.ALL:
        process = servers._running(root, server)
        if process is not None:
            tree = [process, *process.children(recursive=True)]
            found[server.name] = round(sum(map(_own_mb, tree)), 1)
    return found


def _own_mb(process: psutil.Process) -> float:
    try:
        return float(process.memory_full_info().uss) / 1e6
    except psutil.NoSuchProcess:
        return 0.0


def disk(root: Path) -> dict[str, float]:
    """MB on disk by what they are; a file with several names counts once, where it is met first."""
    hidden, seen = root / ".groundup", set[tuple[int, int]]()
    places = {
        "products": [root / "data", root / "models"],
        "cache": [root / ".dvc"],
        "crawl store": [hidden / "crawl"],
        "MLflow": [root / ".run" / "mlflow"],
        "Prefect": [root / ".run" / "prefect"],
        "the rest": [root],
    }
    return {name: round(sum(_size(folder, seen) for folder in folders) / 1e6, 2) for name, folders in places.items()}


def _size(folder: Path, seen: set[tuple[int, int]]) -> int:
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                state = Path(place, name).lstat()
            except FileNotFoundError:
                continue
            if (key := (state.st_dev, state.st_ino)) not in seen:
                seen.add(key)
                total += state.st_size
    return total


def slope(values: Sequence[float]) -> float:
    """Growth from one value to the next: the median over all pairs (Theil and Sen), which no outlier moves."""
    pairs = combinations(enumerate(values), 2)
    slopes = [(second - first) / (after - before) for (before, first), (after, second) in pairs]
    return statistics.median(slopes) if slopes else 0.0


def growing(cycles: Sequence[Cycle]) -> list[str]:
    """A sentence for each thing that grows though it must not. The first quarter of the cycles is warming up."""
    warm = cycles[max(1, len(cycles) // 4) :]
    flat = {f"memory of {name}": [one.memory.get(name, 0.0) for one in warm] for name in warm[0].memory}
    flat |= {f"disk of {name}": [one.disk[name] for one in warm] for name in FLAT}
    found = []
    for name, values in flat.items():
        gained, allowed = slope(values) * (len(values) - 1), SLACK_MB + 0.1 * statistics.median(values)
        if gained > allowed:
            found.append(f"{name}: {gained:.1f} MB more after {len(values)} cycles, {allowed:.1f} allowed: {values}")
    for name in RECORDS:
        values = [one.disk[name] for one in warm]
        half = len(values) // 2
        early, late = slope(values[: half + 1]), slope(values[half:])
        if half >= 2 and late > STEADIER * max(early, 0.0) + 1.0:
            found.append(f"disk of {name}: {late:.2f} MB a cycle, {early:.2f} before: {values}")
    return found


def facts(cycles: Sequence[Cycle]) -> dict[str, Any]:
    """For the results: how many cycles, what each was, and what a cycle adds."""
    warm = cycles[max(1, len(cycles) // 4) :]

    def added(of: Sequence[Mapping[str, float]]) -> dict[str, float]:
        return {name: round(slope([one.get(name, 0.0) for one in of]), 3) for name in of[0]}

    return {
        "cycles": len(cycles),
        "seconds": [one.seconds for one in cycles],
        "stages_run": {
            name: dict(Counter(verb for one in cycles for verb in one.states.get(name, []))) for name in COMMANDS
        },
        "memory_mb": cycles[-1].memory,
        "memory_mb_a_cycle": added([one.memory for one in warm]),
        "disk_mb": cycles[-1].disk,
        "disk_mb_a_cycle": added([one.disk for one in warm]),
        "growing": growing(cycles),
    }

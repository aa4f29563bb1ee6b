"""Kill the whole pipeline, by both doors, at random moments: what tests/trust and benchmarks/trust.py share.

A tour brings one workspace from nothing to all nine products and is killed on its way: each kill is aimed at a stage,
at a random moment of its life or of the second after it, in which DVC takes its product over. After each kill the next
door is opened, at once or when all is quiet, until everything is made. Then the products are compared with those of an
undisturbed run. What is killed and when is drawn from a seed.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq

from llm_core import artifacts
from llm_core.pipeline import PIPELINE, VERBS
from tasks import experiments, params
from tasks.runner import child_environment
from tasks.workspace import Workspace

DOORS = {
    "groundup": [sys.executable, "-m", "flows.cli", "run", "--json"],
    "dvc": [sys.executable, "-m", "dvc", "repro"],
}
VICTIMS = ("everything", "outermost", "stage", "dvc")
LEFT_OUT = {"data", "models", "reports", "runs", "mlruns", "docs", "tests", "benchmarks", "dvc.lock"}
AFTER_S = 1.0
"""Moments after a stage that still count as its own: DVC stores its product, and links it."""
PATIENCE_S = 900.0
LOOK_S = 0.1
"""Between two looks at what runs: a look reads the state of every process of the machine."""
SMALL: dict[str, Any] = {
    "acquire": {
        "sources": [
            {"kind": "embedded", "name": "python", "modules": ["json", "csv", "textwrap", "heapq"], "topics": False},
            {"kind": "problems", "name": "problems", "count": 400, "operations": ["len"]},
        ]
    },
    "pretrain": {"steps": 24, "evaluate_every": 12, "save_every_seconds": 0.2},
    "sft": {"steps": 24, "evaluate_every": 12, "save_every_seconds": 0.2},
    "collect": {"prompts": 60},
    "reward": {"steps": 8, "evaluate_every": 4},
    "align": {"steps": 6, "evaluate_every": 3},
    "evaluate": {"problems": 20, "base_problems": 5, "choices": 8, "cloze": 8, "bootstrap": 100},
}
"""Laid over presets/tiny.yaml: small enough to be made seventy times, with resume points in the middle."""


@dataclass(frozen=True)
class Kill:
    """A kill to come: aimed at `stage` (or the first one after it), `share` of its seconds after it has begun."""

    stage: str
    door: str
    victim: str
    share: float
    at_once: bool


@dataclass
class Told:
    """A kill that was done: the stage that lived, and which products stood in the workspace afterwards."""

    stage: str
    door: str
    victim: str
    after_s: float
    products: list[str]


def copy_code(root: Path, target: Path) -> Path:
    """A project at `target` with the code of `root`, so that nobody's editing changes what a long harness runs."""
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for entry in root.iterdir():
        if entry.name == ".dvcignore" or not (entry.name in LEFT_OUT or entry.name.startswith(".")):
            copied = shutil.copytree(entry, target / entry.name, ignore=ignored) if entry.is_dir() else None
            if copied is None:
                shutil.copyfile(entry, target / entry.name)
    (target / "feedback" / "votes.jsonl").write_bytes(b"")
    return target


def small_params(project: Path, more: Mapping[str, Any] | None = None) -> str:
    """params.yaml of the small pipeline, with `more` laid over it."""
    tiny = params.overlay(params.read(project / "params.yaml"), params.read(project / "presets" / "tiny.yaml"))
    return params.dump(params.overlay(params.overlay(tiny, SMALL), dict(more or {})))


def workspace(project: Path, root: Path, more: Mapping[str, Any] | None = None) -> Workspace:
    """A workspace of its own at `root`, with its own DVC cache, on the code of `project`."""
    return experiments.make_workspace(project, root, small_params(project, more), cache=root / ".dvc" / "cache")


def environment() -> dict[str, str]:
    """For a door: the virtual environment's programs first on PATH, one thread, no events file of somebody else."""
    found = child_environment(Path(os.devnull)) | {"OMP_NUM_THREADS": "1"}
    del found["GROUNDUP_EVENTS"]
    return found


def groundup(space: Workspace, *arguments: str) -> dict[str, Any]:
    """A command of `groundup` with --json in a workspace; what it told. Raises `AssertionError` if it fails."""
    command = [sys.executable, "-m", "flows.cli", *arguments]
    done = subprocess.run(
        command, cwd=space.root, env=environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{arguments}: {done.stdout[-2000:]}{done.stderr[-4000:]}"
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def open_door(space: Workspace, door: str) -> subprocess.Popen[bytes]:
    """Start a run in a session of its own; what it prints is added to `<door>.log` beside the products."""
    with open(space.root / f"{door}.log", "ab") as log:
        return subprocess.Popen(
            DOORS[door], cwd=space.root, env=environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip


def finish(space: Workspace, door: str) -> None:
    """Open a door and leave it alone. Raises `AssertionError` with the end of its log if it fails."""
    if open_door(space, door).wait() != 0:
        raise AssertionError((space.root / f"{door}.log").read_text(errors="replace")[-4000:])


def same(space: Workspace) -> dict[str, Any]:
    """What must be equal in an undisturbed and a disturbed run: digests, and raw's set of URL and digest."""
    found: dict[str, Any] = {}
    for row in PIPELINE:
        product = space.product(row.makes)
        artifacts.verify(product)
        found[row.makes] = raw_pages(product) if row.makes == "raw" else artifacts.digest(product)
    return found


def raw_pages(raw: Path) -> list[tuple[str, str]]:
    """The set of (URL, digest) of all pages, and the bytes of what is no page."""
    pages = {
        (row["url"], row["digest"])
        for table in sorted(raw.glob("*/pages.parquet"))
        for row in pq.read_table(table, columns=["url", "digest"]).to_pylist()
    }
    others = {
        (path.relative_to(raw).as_posix(), artifacts.sha256(path))
        for path in raw.glob("*/*.parquet")
        if path.name != "pages.parquet"
    }
    return sorted(pages | others)


def seconds(space: Workspace) -> dict[str, float]:
    """How long each stage's work took, and a little for its start."""
    reports = {verb: space.read_report(verb) or {} for verb in VERBS}
    return {verb: float(report["run"]["seconds"]) + 3.0 for verb, report in reports.items()}


def plan(seed: int, count: int, tour: int) -> Iterator[list[Kill]]:
    """Tours of at most `tour` kills; each stage, door and victim comes up as often as any other."""
    rng = random.Random(seed)

    def dealt(names: Sequence[str]) -> list[str]:
        return [name for _ in range(-(-count // len(names))) for name in rng.sample(names, len(names))][:count]

    # A tour's stages lie far apart, in order: each of its kills has work of its own to hit.
    wheel = [VERBS[(place * len(VERBS) // tour + turn) % len(VERBS)] for turn in range(count) for place in range(tour)]
    drawn = list(zip(wheel[:count], dealt(tuple(DOORS)), dealt(VICTIMS), strict=True))
    for first in range(0, count, tour):
        some = sorted(drawn[first : first + tour], key=lambda one: VERBS.index(one[0]))
        yield [Kill(*one, share=rng.random(), at_once=rng.random() < 0.5) for one in some]


def tour(space: Workspace, kills: Sequence[Kill], lasts: Mapping[str, float], last_door: str) -> list[Told]:
    """Bring an empty workspace to its end under these kills, and through `last_door`; the kills that hit."""
    told = []
    door: subprocess.Popen[bytes] | None = None
    for kill in kills:
        if door is None or door.poll() is not None:  # else it lives on: only what it had started was killed
            door, name = open_door(space, kill.door), kill.door
        stage = _wait_for(door, kill.stage)
        if stage is None:
            continue  # everything from here on had been made before: there was nothing left to hit
        after = kill.share * (lasts[stage] + AFTER_S)
        _sleep(after, door)
        if door.poll() is None:
            _kill(kill.victim, stage, door)
            told.append(Told(stage, name, kill.victim, round(after, 2), _standing(space)))
        if kill.victim in ("everything", "outermost"):
            door.wait(PATIENCE_S)
            if not kill.at_once:
                _quiet(None, space)
    _quiet(door, space)
    finish(space, last_door)
    check_end(space)
    return told


def check_end(space: Workspace) -> None:
    """Nothing is left over: no process, no half-written product, and DVC finds everything up to date."""
    said = subprocess.run(
        [sys.executable, "-m", "dvc", "status"], cwd=space.root, env=environment(), capture_output=True, text=True
    )
    assert "up to date" in said.stdout, said.stdout[-3000:] + said.stderr[-3000:]
    left = [path.name for name in ("data", "models") for path in (space.root / name).iterdir() if path.name[0] == "."]
    assert set(left) <= {".gitignore"}, f"half-made products stay behind: {left}"
    _quiet(None, space)


def check_reads(space: Workspace) -> None:
    """What each stage said it read is what stands there: nothing else, least of all a half of it, was ever read."""
    for row in PIPELINE:
        report = space.read_report(row.verb) or {}
        for need in row.needs:
            assert report["inputs"][need] == artifacts.digest(space.product(need)), (row.verb, need)


def _wait_for(door: subprocess.Popen[bytes], verb: str) -> str | None:
    """Wait until this stage, or a later one, has a process under the door; None if the door has ended before."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        for process in _under(door.pid):
            found = _stage_of(process)
            if found is not None and VERBS.index(found) >= VERBS.index(verb):
                return found
        if door.poll() is not None:
            return None
        time.sleep(LOOK_S)
    raise AssertionError(f"{verb} did not begin within {PATIENCE_S:.0f} s")


def _under(pid: int) -> list[psutil.Process]:
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _stage_of(process: psutil.Process) -> str | None:
    try:
        words = process.cmdline()
    except psutil.Error:
        return None
    return words[-1] if len(words) > 2 and words[-2] == "tasks.run" and words[-1] in VERBS else None


def _sleep(wanted: float, door: subprocess.Popen[bytes]) -> None:
    try:
        door.wait(wanted)
    except subprocess.TimeoutExpired:
        return


def _kill(victim: str, stage: str, door: subprocess.Popen[bytes]) -> None:
    """SIGKILL of the whole tree, of the outermost process, of the stage's (if it has not ended), or of DVC's."""
    tree = _under(door.pid)
    stages = [process for process in tree if _stage_of(process) == stage]
    dvcs = [process for process in tree if "dvc" in _words(process)]
    chosen = {"everything": tree, "outermost": tree[:1], "stage": stages[-1:], "dvc": dvcs[-1:]}[victim] or tree
    for process in chosen:  # parents first: nobody tells the children
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def _quiet(door: subprocess.Popen[bytes] | None, space: Workspace) -> None:
    """Wait until the door has ended, and every process that works in the workspace."""
    if door is not None:
        door.wait(PATIENCE_S)
    deadline = time.monotonic() + PATIENCE_S
    while left := [process for process in psutil.process_iter() if _works_in(process, space.root)]:
        assert time.monotonic() < deadline, f"these do not end: {[_words(process) for process in left]}"
        time.sleep(LOOK_S)


def _works_in(process: psutil.Process, root: Path) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE and Path(process.cwd()) == root
    except (psutil.Error, OSError):
        return False


def _standing(space: Workspace) -> list[str]:
    return [row.makes for row in PIPELINE if (space.product(row.makes) / artifacts.MANIFEST).is_file()]


def harness(
    project: Path,
    folder: Path,
    *,
    kills: int,
    seed: int,
    per_tour: int = 18,
    side_by_side: int = 1,
    until: float = float("inf"),
    saved: Callable[[dict[str, Any]], None] = lambda _: None,
) -> dict[str, Any]:
    """An undisturbed run, then tours until that many kills or some more have hit; counts, and every kill that was done.

    `side_by_side`: tours at a time, each in a workspace of its own. No tour begins after `until` (`time.monotonic`).
    `saved` hears the counts after every tour. Raises `AssertionError` when a product differs.
    """
    calm = workspace(project, folder / "calm")
    finish(calm, "dvc")
    wanted, lasts = same(calm), seconds(calm)
    plans = enumerate(plan(seed, 100 * kills, per_tour))
    told: list[Told] = []
    lock, tours, under_way, failed = threading.Lock(), 0, 0, False

    def found() -> dict[str, Any]:
        return counts(told, tours, wanted) | {"kills_done": [asdict(hit) for hit in told]}

    def work() -> None:
        nonlocal tours, under_way, failed
        while True:
            with lock:
                left = kills - len(told) - under_way
                if left <= 0 or failed or time.monotonic() > until:
                    return
                number, some = next(plans)
                # A tour is a whole build: what is left may be few, as of those under way not every kill will hit.
                count = min(len(some), max(left, per_tour // 2))
                some = [some[place * len(some) // count] for place in range(count)]
                under_way += len(some)
            try:
                hits = _compared(
                    project, folder / f"tour-{number}", some, lasts, wanted, ("groundup", "dvc")[number % 2]
                )
            except BaseException:
                failed = True
                raise
            with lock:
                told.extend(hits)
                tours, under_way = tours + 1, under_way - len(some)
                saved(found())

    with ThreadPoolExecutor(side_by_side) as pool:
        for worker in [pool.submit(work) for _ in range(side_by_side)]:
            worker.result()
    return found()


def _compared(
    project: Path,
    root: Path,
    kills: Sequence[Kill],
    lasts: Mapping[str, float],
    wanted: Mapping[str, Any],
    last_door: str,
) -> list[Told]:
    """One tour in a workspace of its own, which is gone afterwards; its kills, if its products are those wanted."""
    space = workspace(project, root)
    hits = tour(space, kills, lasts, last_door)
    assert same(space) == wanted, [asdict(hit) for hit in hits]
    check_reads(space)
    shutil.rmtree(space.root)
    return hits


def counts(told: Sequence[Told], tours: int, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Kills in all, and by stage, door and victim."""
    by = {
        name: {value: sum(getattr(hit, name) == value for hit in told) for value in values}
        for name, values in (("stage", VERBS), ("door", tuple(DOORS)), ("victim", VICTIMS))
    }
    return {"kills": len(told), "tours": tours, "products_compared": tours * len(wanted), "by": by}


def tell(found: Mapping[str, Any]) -> str:
    """The counts as text."""
    return json.dumps({name: value for name, value in found.items() if name != "kills_done"})

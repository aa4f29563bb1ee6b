"""From judged traces in MLflow to feedback/votes.jsonl: the latest vote of each rater on each trace, appended once.

The file is tracked and only grows: a vote that was changed is appended again, and its reader takes the later line. It
is replaced whole, so that nobody reads half a line.
"""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llm_core import artifacts
from tasks import exchanges, tracking
from tasks.session import Session
from tasks.workspace import Workspace

FILE = "feedback/votes.jsonl"
SAID = {"left": "a", "right": "b", "a": "a", "b": "b", "tie": "tie", "both_bad": "both_bad"}
"""Words of an assessment (the page's, or typed in MLflow's own page) and what the file calls them."""
SAME = ("preference", "why", "edited", "edited_of", "ts")
"""A vote that agrees with the file's line in these is there already."""

Line = dict[str, Any]


@dataclass(frozen=True)
class Gathered:
    """How many votes are new, how many stand in the file in all, what could not be used, by reason, and a remark."""

    new: int
    total: int
    refused: Mapping[str, int] = field(default_factory=dict)
    remark: str = ""

    def sentence(self) -> str:
        """The same in words."""
        left_out = "".join(f"; {count} left out: {reason}" for reason, count in sorted(self.refused.items()))
        return f"{self.new} new vote{'' if self.new == 1 else 's'}, {self.total} in all{left_out}{self.remark}"


def gather(session: Session) -> Gathered:
    """Send what the page kept, append what is judged, and let collect see it; a tracker that is down adds nothing."""
    space = session.space
    path = space.root / FILE
    try:
        uri = tracking.tracking_uri(space.project)
        exchanges.send(space.project, uri)
        gathered = export(space.project, uri, path)
    except ConnectionError as error:
        gathered = Gathered(0, len(_latest(path)), remark=f"; {error}: what waits there comes with the next run")
    session.display.console.print(f"votes: {gathered.sentence()}", markup=False)
    if gathered.new:
        session.fresh.changed("collect")
    return gathered


def standing(session: Session, *names: str) -> list[Path]:
    """The products of these names as they stand; nothing is built. Raises `BadInput` for one that is not there."""
    return [_whole(session.space, name) for name in names]


def _whole(space: Workspace, name: str) -> Path:
    artifacts.read_manifest(space.product(name))
    return space.product(name)


def export(project: Path, uri: str | None, path: Path) -> Gathered:
    """Append the votes in MLflow that `path` does not hold. Raises `ConnectionError` if MLflow cannot be asked."""
    known = _latest(path)
    refused: Counter[str] = Counter()
    with exchanges.reachable(uri) as client:
        fresh = list(_new_lines(client, project, known, refused))
    if fresh:
        fresh.sort(key=lambda line: (line["ts"], line["id"], line["rater"]))
        old = path.read_bytes() if path.is_file() else b""
        text = "".join(json.dumps(line, sort_keys=True, ensure_ascii=False) + "\n" for line in fresh)
        path.parent.mkdir(exist_ok=True)
        artifacts.write_atomic(path, old + (b"" if old.endswith(b"\n") or not old else b"\n") + text.encode())
    total = len(known.keys() | {(line["id"], line["rater"]) for line in fresh})
    return Gathered(len(fresh), total, refused)


def _latest(path: Path) -> dict[tuple[str, str], Line]:
    """The file's votes by trace and rater, the later line of each."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    votes = [json.loads(line) for line in lines if line.strip()]
    return {(vote["id"], vote["rater"]): vote for vote in votes}


def _new_lines(
    client: Any, project: Path, known: Mapping[tuple[str, str], Line], refused: Counter[str]
) -> Iterator[Line]:
    for info in _judged(client):
        latest = _of_people(info.assessments, project)
        wanted = {}
        for rater, assessment in latest.items():
            vote = _judgement(assessment)
            old = known.get((info.trace_id, rater))
            if vote is None:
                refused[f"{assessment.value!r} is no vote"] += 1
            elif old is None or any(vote[key] != old.get(key, vote[key]) for key in SAME):
                wanted[rater] = vote
        if not wanted:
            continue
        shown = _shown(client.get_trace(info.trace_id))
        if shown is None:
            refused["the trace holds no two answers"] += len(wanted)
            continue
        yield from ({"id": info.trace_id, "rater": rater} | shown | vote for rater, vote in wanted.items())


def _judged(client: Any) -> Iterator[Any]:
    """Every trace that was voted on, oldest first, without its spans."""
    place, token = [tracking.experiment_id(client, exchanges.EXPERIMENT)], None
    while True:
        page = client.search_traces(
            locations=place, max_results=200, order_by=["timestamp ASC"], page_token=token, include_spans=False
        )
        yield from (trace.info for trace in page if trace.info.assessments)
        if not (token := page.token):
            return


def _of_people(assessments: Iterable[Any], project: Path) -> dict[str, Any]:
    """The latest valid preference of each rater. One given on MLflow's own page carries a name: it is hashed here."""
    latest: dict[str, Any] = {}
    for a in sorted(assessments, key=lambda a: (a.create_time_ms, a.last_update_time_ms)):
        if a.name == exchanges.ASSESSMENT and a.valid is not False and a.source.source_type == "HUMAN":
            name = a.source.source_id
            rater = name if re.fullmatch("[0-9a-f]{16}", name) else exchanges.rater_name(project, name)
            latest[rater] = a
    return latest


def _judgement(assessment: Any) -> Line | None:
    """What an assessment says in the file's words, or None if it is no vote."""
    if str(assessment.value) not in SAID:
        return None
    about = assessment.metadata or {}
    seconds = about.get("seconds")
    given = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(assessment.last_update_time_ms / 1000))
    return {
        "preference": SAID[str(assessment.value)],
        "why": assessment.rationale or "",
        "edited": about.get("edited", ""),
        "edited_of": SAID.get(about.get("edited_of", "")),
        "seconds": float(seconds) if seconds else None,
        "ts": about.get("given", given),
    }


def _shown(trace: Any) -> Line | None:
    """The prompt and the two answers of a trace in the file's words: a stood on the left, b on the right."""
    root = next((span for span in trace.data.spans if span.parent_id is None), None)
    sides = root.outputs if root is not None and isinstance(root.outputs, Mapping) else {}
    if not {"left", "right"} <= sides.keys() or root is None:
        return None
    line: Line = {"prompt": root.inputs["messages"]}
    for letter, side in (("a", "left"), ("b", "right")):
        shown = sides[side]
        line |= {f"answer_{letter}": shown["text"], f"model_{letter}": shown["model"]}
        line |= {f"digest_{letter}": shown["digest"], f"sampling_{letter}": shown["sampling"]}
    return line

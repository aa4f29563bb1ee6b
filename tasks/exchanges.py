"""Exchanges on the voting page: two answers to a prompt, and what a person said about them, on their way to MLflow.

Each is written to `.groundup/chat/outbox` first, so that a tracker that is down loses nothing; what has arrived there
as a trace (and, once judged, as an assessment) leaves the outbox. Sending the same record twice makes nothing twice:
the trace is found by the exchange's own id.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import os
import secrets
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock

from llm_core import artifacts
from tasks import tracking

EXPERIMENT = "votes"
ASSESSMENT = "preference"
EXCHANGE = "groundup_exchange"
"""Tag of a trace: the id of its exchange."""
JUDGED = "groundup_judged"
"""Tag of a trace that somebody has voted on."""
VOTE_GIVEN = "groundup.vote.given"
"""Prefect event: one more vote has arrived in MLflow."""
VERSION = "1"
"""Version of the page's records; it changes when their meaning does."""

Preference = Literal["left", "right", "tie", "both_bad"]
Sampling = Mapping[str, float | int]


@dataclass(frozen=True)
class Shown:
    """One of the two answers: its text, the model's name and digest, how it was drawn, and when (nanoseconds)."""

    text: str
    model: str
    digest: str
    sampling: Sampling
    began_ns: int
    ended_ns: int


@dataclass(frozen=True)
class Exchange:
    """A prompt (messages, the last by the user) and its two answers as they stood on the page."""

    prompt: tuple[dict[str, str], ...]
    left: Shown
    right: Shown
    id: str = field(default_factory=lambda: uuid.uuid4().hex)


@dataclass(frozen=True)
class Judgement:
    """What a rater said: `seconds` from both answers complete to the vote, `given` as UTC time in ISO 8601."""

    preference: Preference
    rater: str
    seconds: float
    given: str
    why: str = ""
    edited: str = ""
    edited_of: str = ""


def rater_name(project: Path, name: str) -> str:
    """A name that gives nobody away: keyed by a secret of this project, so that guessing does not help."""
    path = _folder(project) / "salt"
    if not path.is_file():
        mine = path.with_name(f".salt.{secrets.token_hex(4)}")
        with open(os.open(mine, os.O_WRONLY | os.O_CREAT, 0o600), "w") as handle:
            handle.write(secrets.token_hex(32))
        with suppress(FileExistsError):  # two processes at once: the first one's holds for both
            os.link(mine, path)
        mine.unlink()
    return hmac.new(path.read_bytes(), name.strip().encode(), hashlib.sha256).hexdigest()[:16]


def keep(project: Path, exchange: Exchange, judgement: Judgement | None = None) -> Path:
    """Write an exchange, or a judgement of it, into the outbox; the file."""
    record = {"exchange": asdict(exchange), "judgement": asdict(judgement) if judgement else None}
    path = _outbox(project) / f"{time.time_ns():020d}-{exchange.id}.json"
    artifacts.write_atomic(path, artifacts.dump_json(record))
    return path


def waiting(project: Path) -> list[Path]:
    """What has not been sent, oldest first."""
    return sorted(_outbox(project).glob("*.json"))


def send(project: Path, uri: str | None, *, patience_s: float = -1) -> dict[str, str]:
    """Send what waits; the trace of each exchange sent, by the exchange's id. Raises `ConnectionError`.

    `patience_s`: how long to wait for another process that is sending; -1: until it has ended.
    """
    traces: dict[str, str] = {}
    with FileLock(_folder(project) / "lock", timeout=patience_s):
        if not (records := waiting(project)):
            return traces
        with reachable(uri) as client:
            for path in records:
                record = json.loads(path.read_text())
                exchange, judgement = record["exchange"], record["judgement"]
                traces[exchange["id"]] = trace = _trace(client, exchange)
                if judgement:
                    _assess(client, trace, exchange, judgement)
                    _announce(project)
                path.unlink()
    return traces


@contextmanager
def reachable(uri: str | None) -> Iterator[Any]:
    """A client of the tracking server at `uri`; whatever goes wrong there is a `ConnectionError` with one sentence."""
    if uri is None:
        raise ConnectionError("no tracking server is running")
    if uri.startswith("http") and tracking.ask(uri, "experiments/get-by-name", experiment_name="Default") is None:
        raise ConnectionError(f"MLflow does not answer at {uri}")
    # A trace that is sent in the background may not be there yet when its assessment comes.
    os.environ["MLFLOW_ENABLE_ASYNC_TRACE_LOGGING"] = "false"
    client = tracking.client(uri)
    import mlflow
    from mlflow.exceptions import MlflowException

    mlflow.set_tracking_uri(uri)
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    try:
        yield client
    except MlflowException as error:
        raise ConnectionError(f"MLflow at {uri} did not take it: {error.message}") from error


def find(client: Any, exchange: str) -> str | None:
    """The trace of an exchange, or None if it has not arrived."""
    places = [tracking.experiment_id(client, EXPERIMENT)]
    found = client.search_traces(
        locations=places, filter_string=f"tags.{EXCHANGE} = '{exchange}'", include_spans=False, max_results=1
    )
    return str(found[0].info.trace_id) if found else None


def _trace(client: Any, exchange: Mapping[str, Any]) -> str:
    """The trace of an exchange, made if it is not there: a root with the prompt, and a span for each answer."""
    if known := find(client, exchange["id"]):
        return known
    sides = {side: exchange[side] for side in ("left", "right")}
    root = client.start_trace(
        "exchange",
        span_type="CHAIN",
        inputs={"messages": exchange["prompt"]},
        tags={EXCHANGE: exchange["id"], "groundup_version": VERSION},
        experiment_id=tracking.experiment_id(client, EXPERIMENT),
        start_time_ns=min(shown["began_ns"] for shown in sides.values()),
    )
    for side, shown in sides.items():
        span = client.start_span(
            side,
            trace_id=root.trace_id,
            parent_id=root.span_id,
            span_type="LLM",
            inputs={"messages": exchange["prompt"]},
            attributes={key: shown[key] for key in ("model", "digest", "sampling")},
            start_time_ns=shown["began_ns"],
        )
        client.end_span(root.trace_id, span.span_id, outputs=shown["text"], end_time_ns=shown["ended_ns"])
    ended = max(shown["ended_ns"] for shown in sides.values())
    client.end_trace(root.trace_id, outputs=sides, end_time_ns=ended)
    client.get_trace(root.trace_id)  # the exporter only logs its errors: a trace that did not arrive raises here
    return str(root.trace_id)


def _assess(client: Any, trace: str, exchange: Mapping[str, Any], judgement: Mapping[str, Any]) -> None:
    """One assessment a judgement; the same judgement again makes no second one."""
    import mlflow
    from mlflow.entities import AssessmentSource

    given = {(a.source.source_id, (a.metadata or {}).get("given")) for a in client.get_trace(trace).info.assessments}
    if (judgement["rater"], judgement["given"]) in given:
        return
    metadata = {key: str(judgement[key]) for key in ("given", "seconds", "edited", "edited_of") if judgement[key] != ""}
    for side in ("left", "right"):
        shown = exchange[side]
        metadata |= {f"{side}_model": shown["model"], f"{side}_digest": shown["digest"]}
        metadata |= {f"{side}_sampling": json.dumps(shown["sampling"], sort_keys=True)}
    mlflow.log_feedback(
        trace_id=trace,
        name=ASSESSMENT,
        value=judgement["preference"],
        source=AssessmentSource("HUMAN", judgement["rater"]),
        rationale=judgement["why"] or None,
        metadata=metadata,
    )
    client.set_trace_tag(trace, JUDGED, "yes")


def _announce(project: Path) -> None:
    """Tell Prefect of a vote, if its server is there; without it `groundup feedback` still finds the vote."""
    if (url := _prefect(project)) is None:
        return
    event = {
        "id": str(uuid.uuid4()),
        "occurred": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "event": VOTE_GIVEN,
        "resource": {"prefect.resource.id": "groundup.workspace.main"},
        "related": [],
        "payload": {},
    }
    body = json.dumps([event]).encode()
    request = urllib.request.Request(f"{url}/events", body, {"Content-Type": "application/json"})
    try:
        urllib.request.urlopen(request, timeout=5).close()
    except (urllib.error.URLError, OSError) as error:
        logging.getLogger(__name__).warning("Prefect was not told of a vote: %s", error)


def _prefect(project: Path) -> str | None:
    """Address of Prefect's API: PREFECT_API_URL, else the project's own server, else None."""
    if url := os.environ.get("PREFECT_API_URL"):
        return url
    state = project / ".run" / "prefect.json"
    return f"{json.loads(state.read_text())['url']}/api" if state.is_file() else None


def _folder(project: Path) -> Path:
    folder = project / ".groundup" / "chat"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _outbox(project: Path) -> Path:
    folder = _folder(project) / "outbox"
    folder.mkdir(exist_ok=True)
    return folder

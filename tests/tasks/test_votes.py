"""Judged traces become lines of the votes file: the latest of each rater, appended once, whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llm_core.feedback.raters import read_people
from tasks import exchanges, tracking, votes
from tasks.exchanges import Exchange, Judgement, Shown
from tasks.workspace import Workspace

SAMPLING = {"temperature": 1.0, "top_p": 1.0, "max_new_tokens": 8, "seed": 3}


@pytest.fixture
def uri(workspace: Workspace, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """A running tracker, with an experiment of the test's own for its votes."""
    monkeypatch.setattr(exchanges, "EXPERIMENT", request.node.name)
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    found = tracking.tracking_uri(workspace.root)
    assert found is not None
    return found


def exchange(question: str = "2 + 2 = ?") -> Exchange:
    left, right = (Shown(text, "chat", "d" * 64, SAMPLING, 10**18, 10**18 + 7) for text in ("4", "5"))
    return Exchange(({"role": "user", "content": question},), left, right)


def judge(project: Path, uri: str, shown: Exchange, rater: str, preference: Any, second: int, **more: str) -> str:
    """Give a vote and send it; its trace."""
    given = f"2026-11-21T20:00:{second:02d}Z"
    judgement = Judgement(preference, exchanges.rater_name(project, rater), 4.5, given, **more)
    exchanges.keep(project, shown, judgement)
    return exchanges.send(project, uri)[shown.id]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_vote_becomes_a_line_that_its_reader_takes(tmp_path: Path, uri: str) -> None:
    path = tmp_path / "feedback" / "votes.jsonl"
    trace = judge(tmp_path, uri, exchange(), "ada", "right", 1, why="shorter", edited="4!", edited_of="left")
    assert votes.export(tmp_path, uri, path).sentence() == "1 new vote, 1 in all"
    (line,) = lines(path)
    assert line == {
        "id": trace, "prompt": [{"role": "user", "content": "2 + 2 = ?"}], "answer_a": "4", "answer_b": "5",
        "preference": "b", "rater": exchanges.rater_name(tmp_path, "ada"), "model_a": "chat", "model_b": "chat",
        "digest_a": "d" * 64, "digest_b": "d" * 64, "sampling_a": SAMPLING, "sampling_b": SAMPLING,
        "why": "shorter", "edited": "4!", "edited_of": "a", "seconds": 4.5, "ts": "2026-11-21T20:00:01Z",
    }  # fmt: skip
    (vote,) = read_people(path)
    assert (vote.id, vote.preference, vote.answer_b) == (trace, "b", "5")


def test_again_adds_nothing_and_a_second_thought_adds_a_line(tmp_path: Path, uri: str) -> None:
    path, shown = tmp_path / "votes.jsonl", exchange()
    judge(tmp_path, uri, shown, "ada", "left", 1)
    judge(tmp_path, uri, shown, "eve", "tie", 2)
    assert votes.export(tmp_path, uri, path).new == 2
    before = path.read_bytes()
    assert votes.export(tmp_path, uri, path).new == 0
    assert path.read_bytes() == before
    judge(tmp_path, uri, shown, "ada", "both_bad", 3)
    gathered = votes.export(tmp_path, uri, path)
    assert (gathered.new, gathered.total) == (1, 2)
    assert path.read_bytes().startswith(before)
    assert [line["preference"] for line in lines(path)] == ["a", "tie", "both_bad"]
    assert {vote.preference for vote in read_people(path)} == {"tie", "both_bad"}
    assert votes.export(tmp_path, uri, path).new == 0


def test_lines_follow_the_time_of_the_vote_and_unjudged_exchanges_are_none(tmp_path: Path, uri: str) -> None:
    for question, second in (("b", 9), ("a", 2), ("c", 5)):
        judge(tmp_path, uri, exchange(question), "ada", "left", second)
    exchanges.keep(tmp_path, exchange("never judged"))
    exchanges.send(tmp_path, uri)
    votes.export(tmp_path, uri, tmp_path / "votes.jsonl")
    assert [line["prompt"][0]["content"] for line in lines(tmp_path / "votes.jsonl")] == ["a", "c", "b"]


def test_a_vote_on_mlflows_own_page_counts_under_a_hashed_name(tmp_path: Path, uri: str) -> None:
    import mlflow
    from mlflow.entities import AssessmentSource

    trace = judge(tmp_path, uri, exchange(), "ada", "left", 1)
    for name, value in (("grace@example.org", "both_bad"), ("bot@example.org", "perhaps")):
        mlflow.log_feedback(trace_id=trace, name="preference", value=value, source=AssessmentSource("HUMAN", name))
    machine = AssessmentSource("LLM_JUDGE", "a-model")
    mlflow.log_feedback(trace_id=trace, name="preference", value="right", source=machine)
    gathered = votes.export(tmp_path, uri, tmp_path / "votes.jsonl")
    assert gathered.new == 2
    assert gathered.sentence() == "2 new votes, 2 in all; 1 left out: 'perhaps' is no vote"
    assert {line["preference"] for line in lines(tmp_path / "votes.jsonl")} == {"a", "both_bad"}
    assert "example.org" not in (tmp_path / "votes.jsonl").read_text()


def test_a_file_without_a_last_newline_is_not_broken(tmp_path: Path, uri: str) -> None:
    path = tmp_path / "votes.jsonl"
    judge(tmp_path, uri, exchange(), "ada", "left", 1)
    votes.export(tmp_path, uri, path)
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    judge(tmp_path, uri, exchange(), "ada", "left", 2)
    votes.export(tmp_path, uri, path)
    assert len(read_people(path)) == 2


@pytest.mark.parametrize("address", [None, "http://127.0.0.1:9"])
def test_a_tracker_that_is_down_changes_nothing(tmp_path: Path, address: str | None) -> None:
    path = tmp_path / "votes.jsonl"
    path.write_text("")
    with pytest.raises(ConnectionError, match=r"^(no tracking server is running|MLflow does not answer at http)"):
        votes.export(tmp_path, address, path)
    exchanges.keep(tmp_path, exchange())
    with pytest.raises(ConnectionError):
        exchanges.send(tmp_path, address)
    assert path.read_text() == ""
    assert len(exchanges.waiting(tmp_path)) == 1


def test_prefect_hears_of_every_vote(tmp_path: Path, uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server stands in for Prefect: what is posted is what its API asks for."""
    import http.server
    import threading

    heard: list[dict[str, Any]] = []

    class Listener(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            heard.extend(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Listener) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{server.server_port}/api")
        judge(tmp_path, uri, exchange(), "ada", "left", 1)
        exchanges.keep(tmp_path, exchange("not judged"))
        exchanges.send(tmp_path, uri)
        server.shutdown()
    from prefect.events import Event

    (event,) = [Event.model_validate(event) for event in heard]
    assert event.event == exchanges.VOTE_GIVEN

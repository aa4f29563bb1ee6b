"""Full queues, clients that leave, models that fail, and another champion: nobody else notices."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from apps import server as serving
from apps.serving.options import ServeOptions
from apps.serving.served import Champion, Folder, Served, load
from apps.serving.transcript import Transcript
from llm_core import artifacts
from llm_core.artifacts import new_product
from llm_core.contract import BadInput
from llm_core.model.engine import Drawn, Engine
from llm_core.model.transformer import Transformer
from tests.apps.conftest import PATIENCE, Running, running

LONG = {"model": "groundup", "prompt": "the quick", "max_tokens": 4000, "logit_bias": {}, "seed": 1}
SHORT = {"model": "groundup", "prompt": "the quick", "max_tokens": 3, "seed": 1}


class SlowEngine(Engine):
    """At most two hundred tokens a second: 4,000 take twenty seconds on the fastest machine."""

    def step(self) -> list[Drawn]:
        time.sleep(0.005)
        return super().step()


def slow(model: Transformer, max_rows: int) -> Engine:
    return SlowEngine(model, max_rows)


@contextmanager
def streaming(server: Running, body: dict[str, Any] = LONG, path: str = "/v1/completions") -> Iterator[Iterator[str]]:
    """A stream of which the first event was read."""
    with httpx.Client(base_url=server.url, timeout=PATIENCE) as http:  # noqa: SIM117 - left from the inside out
        with http.stream("POST", path, json={**body, "stream": True}) as answer:
            lines = answer.iter_lines()
            first = next(lines)
            assert answer.status_code == 200, first
            yield lines


class EndlessEngine(SlowEngine):
    """No stop tokens."""

    def add(self, request: Any) -> int:
        from dataclasses import replace

        return super().add(replace(request, stop_ids=frozenset()))


def endless(model: Transformer, max_rows: int) -> Engine:
    return EndlessEngine(model, max_rows)


@pytest.fixture
def server(long_model: Path) -> Iterator[Running]:
    """One row at a time and one in the queue; answers of 4,000 tokens that take their time."""
    with running(long_model, endless, max_rows=1, max_queue=1) as found:
        yield found


@pytest.mark.parametrize("stream", [True, False])
def test_the_row_of_a_client_that_leaves_is_freed(server: Running, stream: bool) -> None:
    if stream:
        with streaming(server):
            assert server.figure("rows_running") == 1
    else:
        with httpx.Client(base_url=server.url) as http, pytest.raises(httpx.ReadTimeout):
            http.post("/v1/completions", json=LONG, timeout=httpx.Timeout(PATIENCE, read=1.0))
    server.until(lambda: server.figure("rows_running") == 0, "the row is freed")
    assert server.figure("clients_left_total") == 1
    drawn = server.figure("generated_tokens_total")
    assert drawn < 3900, "the answer was drawn to its end"
    assert server.http.post("/v1/completions", json=SHORT).status_code == 200
    assert server.figure("generated_tokens_total") == drawn + 3, "somebody went on drawing"


def test_a_waiting_client_that_leaves_frees_its_place_in_the_queue(server: Running) -> None:
    with streaming(server):
        with httpx.Client(base_url=server.url) as http, pytest.raises(httpx.ReadTimeout):
            http.post("/v1/completions", json=SHORT, timeout=httpx.Timeout(PATIENCE, read=0.3))
        server.until(lambda: server.figure("rows_waiting") == 0, "the place is freed")
        assert server.figure("rows_running") == 1
    assert server.http.post("/v1/completions", json=SHORT).status_code == 200


def test_a_full_queue_says_when_to_come_back(server: Running) -> None:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    with ThreadPoolExecutor() as pool, streaming(server):
        waits = pool.submit(server.http.post, "/v1/completions", json=SHORT)
        server.until(lambda: server.figure("rows_waiting") == 1, "one waits")
        with pytest.raises(openai.RateLimitError) as refused:
            client.completions.create(model="groundup", prompt="a")
        assert refused.value.code == "queue_full"
        assert 1 <= int(refused.value.response.headers["retry-after"]) <= 30
        assert server.figure("refused_total") == 1
        assert not waits.done()
        assert server.http.get("/health").status_code == 200
        patient = pool.submit(openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=9).completions.create,
                              model="groundup", prompt="a", max_tokens=1)  # fmt: skip
        server.until(lambda: server.figure("refused_total") >= 2, "the patient client was refused too")
    with pool:
        assert waits.result(PATIENCE).status_code == 200
        assert patient.result(PATIENCE).choices, "the official client comes back by itself"


def test_an_answer_ends_when_its_time_is_over(long_model: Path) -> None:
    with running(long_model, endless, max_rows=1, request_seconds=0.5) as found, ThreadPoolExecutor() as pool:
        cut = pool.submit(httpx.post, f"{found.url}/v1/completions", json=LONG, timeout=PATIENCE)
        answer = cut.result(PATIENCE)
        assert answer.status_code == 200
        assert answer.json()["choices"][0]["finish_reason"] == "length"
        assert 0 < answer.json()["usage"]["completion_tokens"] < 3900
        found.until(lambda: found.figure("rows_running") == 0, "the row is freed")


def test_the_limit_on_tokens(tiny_model: Path) -> None:
    with running(tiny_model, max_tokens=5) as found:
        client = openai.OpenAI(base_url=f"{found.url}/v1", api_key="none", max_retries=0)
        chat = client.chat.completions.create(model="groundup", messages=[{"role": "user", "content": "a"}], seed=4)
        assert chat.usage is not None
        assert chat.usage.completion_tokens <= 5
        with pytest.raises(openai.BadRequestError, match="at most 5"):
            client.completions.create(model="groundup", prompt="a", max_tokens=6)


class BrokenEngine(SlowEngine):
    """Fails once it has drawn ten tokens of an answer."""

    def step(self) -> list[Drawn]:
        drawn = super().step()
        if any(len(row.tokens) == 10 for row in self.rows):
            raise RuntimeError("a fault that a test made")
        return drawn


def test_a_model_that_fails_fails_its_answers_only(long_model: Path) -> None:
    with running(long_model, lambda model, rows: BrokenEngine(model, rows)) as found:
        answer = found.http.post("/v1/completions", json={**LONG, "max_tokens": 50, "seed": 3})
        assert answer.status_code == 500
        assert answer.json()["error"]["type"] == "server_error"
        assert "fault that" not in answer.text
        with streaming(found, {**LONG, "max_tokens": 50, "seed": 3}) as lines:
            events = [line for line in lines if line]
        assert json.loads(events[-1].removeprefix("data: "))["error"]["type"] == "server_error"
        assert found.http.post("/v1/completions", json={**SHORT, "max_tokens": 5}).status_code == 200
        assert found.figure("failures_total") == 2


class Moving:
    """A registry's alias that a test moves."""

    watched = True

    def __init__(self, *models: Path) -> None:
        self.folders = {Folder(model).digest(): model for model in models}
        self.now = next(iter(self.folders))

    def digest(self) -> str | None:
        return self.now

    def load(self) -> Served:
        return load(self.folders[self.now], self.now or "", "one of two")


def test_another_champion_takes_over_and_drops_nothing(long_model: Path, tiny_model: Path) -> None:
    alias, paused = Moving(long_model, tiny_model), threading.Event()
    first, second = alias.folders

    class Pausing(EndlessEngine):
        """The first model's engine draws nothing while the test says so."""

        def step(self) -> list[Drawn]:
            if paused.is_set() and self.model.config.context == 4096:
                time.sleep(0.001)
                return []
            return Engine.step(self)

    make = Pausing
    with running(alias, make, watch_seconds=0.05, max_rows=4) as found, ThreadPoolExecutor() as pool:
        body = {**LONG, "max_tokens": 100}
        alone = found.http.post("/v1/completions", json=body).json()
        with streaming(found, {**body, "max_tokens": 3000}) as lines:
            paused.set()
            begun = [pool.submit(httpx.post, f"{found.url}/v1/completions", json=body, timeout=PATIENCE) for _ in "ab"]
            found.until(lambda: found.figure("requests_open") == 4, "all three are in, and /metrics")
            alias.now = second
            found.until(lambda: found.http.get("/health").json()["model"] == second, "the second takes over")
            new = found.http.post("/v1/completions", json=SHORT).json()
            assert new["system_fingerprint"] == f"fp_{second[:12]}"
            assert not any(answer.done() for answer in begun)
            paused.clear()
            rest = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
        assert {event["system_fingerprint"] for event in rest} == {f"fp_{first[:12]}"}
        assert rest[-1]["choices"][0]["finish_reason"] == "length"
        for answer in begun:
            whole = answer.result(PATIENCE).json()
            assert whole["system_fingerprint"] == f"fp_{first[:12]}"
            assert whole["usage"]["completion_tokens"] == 100
            assert whole["choices"][0]["text"] == alone["choices"][0]["text"]
        assert found.figure("model_swaps_total") == 1
        alias.now = first
        found.until(lambda: found.http.get("/health").json()["model"] == first, "and back")
        assert found.http.post("/v1/completions", json=body).json()["choices"] == alone["choices"]


def test_a_new_champion_that_cannot_be_read_leaves_the_old_one(tiny_model: Path, tmp_path: Path) -> None:
    alias = Moving(tiny_model)
    good = alias.now
    alias.folders["broken"] = tmp_path
    with running(alias, watch_seconds=0.05) as found:
        alias.now = "broken"
        found.until(lambda: found.figure("failures_total") == 1, "loading failed")
        assert found.http.get("/health").json() == {"status": "ok", "model": good, "version": "one of two"}
        assert found.http.post("/v1/completions", json=SHORT).status_code == 200
        alias.now = None
        time.sleep(0.2)
        assert found.figure("failures_total") == 1, "a broken one is not tried again by itself"


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An MLflow server of the project's own kind; no Prefect."""
    from deployments import servers

    for variable in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI", "PREFECT_HOME"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9/api")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    yield servers.ensure(tmp_path)["MLFLOW_TRACKING_URI"]
    servers.stop(tmp_path)


def test_the_champion_of_the_registry_is_served_and_followed(
    registry: str, long_model: Path, tiny_model: Path, tmp_path: Path
) -> None:
    from tasks import tracking
    from tasks.cards import Cards
    from tasks.registry import Registry

    known = Registry(registry)
    source = Champion(registry, "champion", tmp_path / "cache")
    assert source.digest() is None
    with pytest.raises(BadInput, match="no champion"):
        source.load()
    run_id = known.client.create_run(tracking.experiment_id(known.client, "promote")).info.run_id
    versions = []
    for name, model in (("chat", long_model), ("aligned", tiny_model)):
        with new_product(tmp_path / name, name) as product:
            shutil.copytree(model, product, dirs_exist_ok=True)
        versions.append(known.register(run_id, name, tmp_path / name, Cards("a card", "another"), tmp_path / name))
    known.point("champion", versions[0])
    with running(source, watch_seconds=0.1) as found:
        about = found.http.get("/v1/models").json()["data"][0]
        assert (about["root"], about["version"]) == (artifacts.digest(tmp_path / "chat"), "1 (chat)")
        known.point("champion", versions[1])
        found.until(lambda: found.http.get("/health").json()["version"] == "2 (aligned)", "the alias is followed")
        answer = found.http.post("/v1/completions", json=SHORT).json()
        assert answer["system_fingerprint"] == f"fp_{artifacts.digest(tmp_path / 'aligned')[:12]}"
        known.point("previous", versions[0])
        known.rollback()
        found.until(lambda: found.http.get("/health").json()["version"] == "1 (chat)", "a rollback is followed")
        assert sorted(p.name for p in (tmp_path / "cache").iterdir()) == sorted(v.digest for v in versions)


def command(model: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "flows.cli", "serve", "--model", str(model), "--port", "0", *more]


def test_the_command_serves_a_directory_takes_sighup_and_ends_on_sigterm(
    root: Path, tiny_model: Path, long_model: Path, tmp_path: Path
) -> None:
    link = tmp_path / "current"
    link.symlink_to(long_model)
    environment = os.environ | {"GROUNDUP_API_KEY": "s3cret", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    process = subprocess.Popen(
        command(link), cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert "serving current as 'groundup' at http://127.0.0.1:" in line, process.communicate()[1]
        base = line.split(" at ")[1].split(",")[0]
        client = openai.OpenAI(base_url=base, api_key="s3cret", max_retries=0)
        before = next(iter(client.models.list())).root  # type: ignore[attr-defined]
        stream = client.completions.create(model="groundup", prompt="a", max_tokens=400, seed=2, stream=True)
        parts = [next(iter(stream))]
        fresh = tmp_path / "next"
        fresh.symlink_to(tiny_model)
        fresh.rename(link)
        process.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + PATIENCE
        while next(iter(client.models.list())).root == before:  # type: ignore[attr-defined]
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        parts += list(stream)
        assert parts[-1].choices[0].finish_reason in ("length", "stop")
        assert {part.system_fingerprint for part in parts} == {f"fp_{before[:12]}"}
        assert process.wait(PATIENCE) in (0, -signal.SIGTERM)
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--host", "0.0.0.0"], "name a key with --api-key or GROUNDUP_API_KEY"),
        (["--host", "example.org", "--api-key", ""], "name a key"),
        (["--api-key", "two words"], "--api-key: only printable"),
        (["--host", "192.0.2.1", "--api-key", "k"], "cannot listen there"),
    ],
)
def test_what_the_command_refuses(tiny_model: Path, options: list[str], sentence: str) -> None:
    from apps.serving.options import ServeOptions
    from llm_core.contract import BadInput

    given = {
        name.removeprefix("--").replace("-", "_"): value
        for name, value in zip(options[::2], options[1::2], strict=True)
    }
    with pytest.raises(BadInput, match=sentence):
        serving.serve(Folder(tiny_model), ServeOptions(port=0, **given), print)


def test_a_taken_port_is_refused_if_named_and_else_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving.listen(ServeOptions(port=0)) as first:
        taken = first.getsockname()[1]
        with pytest.raises(BadInput, match=f"--port {taken}: cannot listen there"):
            serving.listen(ServeOptions(port=taken))
        monkeypatch.setattr(serving, "PORT", taken)
        with serving.listen(ServeOptions()) as second:
            assert second.getsockname()[1] not in (0, taken)


def test_no_model_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no model here"):
        serving.serve(Folder(tmp_path), ServeOptions(port=0), print)


PIECES = [b"a", b"b", b"c", b"\xe6\x97", b"\xa5", b"ab", b""]


def told(tokens: list[int], stops: list[str], finished: str = "") -> tuple[list[str], str, list[int]]:
    """(text of each step, why it ended, tokens told)."""
    transcript = Transcript(PIECES, stops, frozenset({6}))
    texts, scored = [], []
    for place, token in enumerate(tokens):
        last = place + 1 == len(tokens)
        delta = transcript.take(token, -1.0, (), finished if last else "")
        texts.append(delta.text)
        scored += [entry.token for entry in delta.scored]
        if transcript.finish:
            break
    return texts, transcript.finish, scored


def test_a_transcript_tells_whole_characters_and_nothing_of_a_stop() -> None:
    assert told([0, 3, 4, 1], [], "length") == (["a", "", "\u65e5", "b"], "length", [0, 3, 4, 1])
    assert told([0, 1, 0, 2], ["abc"]) == (["", "", "ab", "ac"], "", [0, 1, 0, 2])
    assert told([0, 1, 2, 0], ["abc"]) == (["", "", ""], "stop", [])
    assert told([0, 5, 2, 0], ["bc", "never"]) == (["a", "a", ""], "stop", [0, 5])
    assert told([0, 6], [], "stop") == (["a", ""], "stop", [0])
    assert told([0, 3], [], "length") == (["a", "\ufffd"], "length", [0, 3])
    assert told([0, 1], ["abc"], "length") == (["", "ab"], "length", [0, 1])
    assert told([5, 5, 2], ["ba", "bc"]) == (["a", ""], "stop", [5])


def test_threads_end_with_their_servers(tiny_model: Path) -> None:
    with running(tiny_model):
        assert any(thread.name == "model" for thread in threading.enumerate())
        before = sum(thread.name == "model" for thread in threading.enumerate())
    assert sum(thread.name == "model" for thread in threading.enumerate()) == before - 1

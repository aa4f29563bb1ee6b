"""Whatever is sent, the answer is a 4xx in OpenAI's shape, and the others are served on."""

from __future__ import annotations

import json
import resource
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import hypothesis
import pytest
import schemathesis
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi import checks as openapi

from tests.apps.conftest import Running, running

IDLE = 1000
EVERY = list(hypothesis.HealthCheck)
GOOD = {"model": "groundup", "prompt": "the quick", "max_tokens": 3}
PATHS = ("/v1/completions", "/v1/chat/completions")


def is_refusal(answer: httpx.Response, status: int) -> None:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"null", b"[]", b'"text"', b"7", b"\0", b'{"model": "groundup"', b"\xff\xfe{}", b"[" * 100_000,
        b'{"model": "groundup", "prompt": "a", "temperature": NaN}', b'{"a":' * 50_000,
        b'{"model": "groundup", "prompt": "a", "temperature": 1e999}',
        b'{"model": "groundup", "prompt": "a", "seed": ' + b"9" * 5000 + b"}",
        b'{"model": "groundup", "prompt": "a", "max_tokens": 1.5}',
        b'{"model": "groundup", "prompt": "a", "max_tokens": true}',
        b'{"model": "groundup", "prompt": "\\u0000"}', b'{"model": "groundup", "prompt": "\\ud800"}',
        b'{"model": "groundup", "prompt": ""}', b'{"model": "groundup", "prompt": []}',
        b'{"model": "groundup", "prompt": [[]]}', b'{"model": "groundup", "prompt": [-1]}',
        b'{"model": "groundup", "prompt": [320]}', b'{"model": "groundup", "prompt": [1, "a"]}',
        b'{"model": "groundup", "prompt": "a", "best_of": 2}', b'{"model": "groundup", "prompt": "a", "suffix": "b"}',
        b'{"model": "groundup", "prompt": "a", "\\ud800": 1}', b'{"model": "groundup", "prompt": "a", "x\\u0000y": 1}',
        b'{"model": "groundup", "prompt": "a", "logit_bias": {"1": 1}, "logit_bias": {"1": 2}}',
        b'{"model": "groundup", "prompt": "a", "echo": true, "logprobs": 1}',
        b'{"model": "groundup", "prompt": "a", "stream_options": {"include_usage": "yes"}}',
    ],
    ids=lambda body: repr(body[:60]) if isinstance(body, bytes) else str(body),
)  # fmt: skip
@pytest.mark.parametrize("path", PATHS)
def test_bad_bodies(served: Running, body: bytes, path: str) -> None:
    is_refusal(served.http.post(path, content=body, headers={"content-type": "application/json"}), 400)


def test_other_refusals(served: Running) -> None:
    http = served.http
    is_refusal(http.post("/v1/completions", json={**GOOD, "model": "gpt-4o"}), 404)
    is_refusal(http.get("/v1/nothing"), 404)
    is_refusal(http.get("/v1/completions"), 405)
    is_refusal(http.post("/v1/completions", content=json.dumps(GOOD), headers={"content-type": "text/plain"}), 400)
    is_refusal(http.get("/v1/models", headers={"host": "evil.example.org"}), 403)
    is_refusal(http.get("/v1/models", headers={"host": "[::2]:80"}), 403)
    assert http.get("/v1/models", headers={"host": "localhost:9"}).status_code == 200
    assert http.get("/v1/models", headers={"host": "[::1]"}).status_code == 200


def test_a_hundred_megabytes(served: Running) -> None:
    announced = served.http.post("/v1/completions", content=b"x" * 100_000_000)
    is_refusal(announced, 413)

    def unannounced() -> Iterator[bytes]:
        for _ in range(100):
            yield b"x" * 1_000_000

    is_refusal(served.http.post("/v1/completions", content=unannounced()), 413)
    assert served.http.post("/v1/completions", json=GOOD).status_code == 200


@pytest.mark.parametrize(
    "sent",
    [b"\0\0\0\0\r\n\r\n", b"GET / HTTP/9\r\n\r\n", b"POST /v1/models HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
     b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"],
)  # fmt: skip
def test_what_is_no_http(served: Running, sent: bytes) -> None:
    with connected(served) as connection:
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        head, _, body = read_all(connection).partition(b"\r\n\r\n")
    if head:  # half a TLS greeting is no line yet, and its end needs no answer
        assert head.startswith(b"HTTP/1.1 4")
        assert json.loads(body)["error"]["type"] == "invalid_request_error"
    assert served.http.post("/v1/completions", json=GOOD).status_code == 200


def connected(server: Running) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), timeout=60)


def read_all(connection: socket.socket) -> bytes:
    """Until the other side closes."""
    found = b""
    try:
        while piece := connection.recv(65536):
            found += piece
    except ConnectionResetError:
        pass
    return found


def test_a_thousand_connections_that_send_nothing_are_closed_and_the_others_served(tiny_model: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    count = IDLE if hard == resource.RLIM_INFINITY or hard >= 4 * IDLE else hard // 4
    if soft != resource.RLIM_INFINITY and soft < 4 * count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (4 * count, hard))
    with running(tiny_model, receive_seconds=3.0) as found, ExitStack() as stack:
        idle = [stack.enter_context(connected(found)) for _ in range(count)]
        for connection in idle[::3]:
            connection.sendall(b"POST /v1/completions HTTP/1.1\r\nContent-")
        for connection in idle[1::3]:
            connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n\r\n{")
        for _ in range(5):
            assert found.http.post("/v1/completions", json=GOOD).status_code == 200
        for connection in idle:
            head, _, body = read_all(connection).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 408")
            assert json.loads(body)["error"]["code"] in ("header_too_slow", "body_too_slow")
        assert found.http.post("/v1/completions", json=GOOD).status_code == 200
        assert found.figure("rows_running") == 0


def test_a_slow_second_request_on_a_connection_is_cut_too(tiny_model: Path) -> None:
    with running(tiny_model, receive_seconds=1.0) as found, connected(found) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        connection.sendall(b"GET /he")
        assert b"header_too_slow" in read_all(connection)


def test_schemathesis_finds_no_server_error(served: Running) -> None:
    """Examples from the description, fitting and not: no 5xx, and every response is one that the description names."""
    description = schemathesis.openapi.from_url(f"{served.url}/openapi.json")
    checks = [
        not_a_server_error, openapi.status_code_conformance, openapi.content_type_conformance,
        openapi.response_schema_conformance,
    ]  # fmt: skip
    operations = list(description.get_all_operations())
    assert len(operations) >= 6
    seen: set[int] = set()
    for operation in operations:

        @hypothesis.settings(
            max_examples=25,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        @hypothesis.given(case=operation.ok().as_strategy())
        def look(case: schemathesis.Case) -> None:
            answer = case.call(timeout=120)
            seen.add(answer.status_code)
            case.validate_response(answer, checks=checks)

        look()
    assert {200, 400} <= seen or {200, 404} <= seen

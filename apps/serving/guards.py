"""What stands before the API: who may ask, how large and how slow a request may be, and the count of all of them.

A pure ASGI middleware: it reads the body itself, within bytes and seconds, before the app sees the request, so that
nothing is parsed of what is too large, and a client that sends nothing holds a connection, not a task of the model.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from apps.serving.errors import ApiError
from apps.serving.metrics import Metrics
from apps.serving.options import ServeOptions, is_loopback

OPEN = ("/health",)
"""Paths that need no key."""
PATHS = ("/v1/models", "/v1/completions", "/v1/chat/completions", "/health", "/metrics", "/openapi.json")
"""Paths that are counted by name; all others as "other"."""
DISCARD_SECONDS = 2.0
"""How long the rest of a refused body is read and thrown away."""
GRACE_SECONDS = 10.0
"""Beyond the time for an answer, for a client that is slow to read it."""


class Guards:
    """Wraps the app."""

    def __init__(self, app: ASGIApp, options: ServeOptions, metrics: Metrics) -> None:
        self.app, self.options, self.metrics = app, options, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status = time.monotonic(), 499
        self.metrics.open.inc()

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            async with asyncio.timeout(self.options.receive_seconds + self.options.request_seconds + GRACE_SECONDS):
                try:
                    headers = {name.lower(): value for name, value in scope["headers"]}
                    self._check(scope["path"], headers)
                    body = await self._body(headers, receive)
                except ApiError as error:
                    await _refuse(error, receive, counted)
                    return
                await self.app(scope, _replaying(body, receive), counted)
        except TimeoutError:
            return  # the answer ended in time, but its client does not read it: uvicorn closes what has no end
        finally:
            path = scope["path"] if scope["path"] in PATHS else "other"
            self.metrics.open.dec()
            self.metrics.requests.labels(path, str(status)).inc()
            self.metrics.seconds.labels(path).observe(time.monotonic() - began)

    def _check(self, path: str, headers: dict[bytes, bytes]) -> None:
        """Who asks: the key if there is one, else only pages and programs that call this machine by its own name."""
        if path in OPEN:
            return
        if not self.options.api_key:
            host = headers.get(b"host", b"localhost").decode("latin-1")
            if not is_loopback(host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host):
                text = "the server has no API key, so it answers only to localhost, not to another host name"
                raise ApiError(403, text, code="host_not_allowed")
            return
        wanted = f"Bearer {self.options.api_key}".encode()
        if not hmac.compare_digest(headers.get(b"authorization", b""), wanted):
            text = "the API key is missing or wrong; send it as `Authorization: Bearer KEY`"
            raise ApiError(401, text, code="invalid_api_key")

    async def _body(self, headers: dict[bytes, bytes], receive: Receive) -> bytes | None:
        """All of the body; None if the client left. Raises `ApiError` 413 or 408."""
        most = self.options.max_body
        too_large = ApiError(413, f"the body has more than {most} bytes", code="body_too_large")
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > most:
            raise too_large
        chunks, size = [], 0
        try:
            async with asyncio.timeout(self.options.receive_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    chunks.append(message.get("body", b""))
                    size += len(chunks[-1])
                    if size > most:
                        raise too_large
                    if not message.get("more_body", False):
                        return b"".join(chunks)
        except TimeoutError:
            text = f"the body did not arrive within {self.options.receive_seconds:g} s"
            raise ApiError(408, text, code="body_too_slow") from None


async def _refuse(error: ApiError, receive: Receive, send: Send) -> None:
    """Send the refusal at once, then throw away what the client still sends, for a while.

    Closing with unread bytes would reset the connection, and the client might never see why.
    """
    response = error.response()
    if error.status in (408, 413):
        response.headers["Connection"] = "close"
    await send({"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers})
    await send({"type": "http.response.body", "body": response.body, "more_body": True})
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DISCARD_SECONDS):
            while error.status != 408 and (await receive()).get("more_body", False):
                pass
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def _replaying(body: bytes | None, receive: Receive) -> Receive:
    """`receive` for the app: the body that was read, then whatever comes."""
    first: list[Message] = [{"type": "http.request", "body": body, "more_body": False}] if body is not None else []

    async def replay() -> Message:
        return first.pop() if first else await receive()

    return replay

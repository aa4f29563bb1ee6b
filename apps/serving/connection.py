"""uvicorn's HTTP connection, with a time limit for the request's header and our shape for what is no HTTP.

uvicorn waits forever for the first header of a connection (its keep-alive limit begins after a response), so a thousand
connections that send nothing, or a byte a minute, would stay.
"""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any, ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from apps.serving.errors import ApiError


class Connection(H11Protocol):
    """A connection that is closed unless its next request's header is complete in time."""

    header_seconds: ClassVar[float] = 10.0
    _header_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Begin to wait for the first header."""
        super().connection_made(transport)
        connected = transport.get_extra_info("socket")
        if connected is not None and connected.family != socket.AF_UNIX and hasattr(socket, "TCP_USER_TIMEOUT"):
            # A client that reads nothing of its answer keeps the connection no longer than one that sends nothing.
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(6000 * self.header_seconds))
        self._header_timer = self.loop.call_later(self.header_seconds, self._too_slow)

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """A whole header ends the waiting; the first bytes of another one begin it again."""
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._stop_timer()
        elif self._header_timer is None and not self.transport.is_closing():
            self._header_timer = self.loop.call_later(self.header_seconds, self._too_slow)

    def _stop_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _too_slow(self) -> None:
        self._header_timer = None
        if not self.transport.is_closing() and self.conn.their_state is h11.IDLE:
            self._refuse(ApiError(408, "the request's header did not arrive in time", code="header_too_slow"))

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002
        """What is no HTTP gets the same shape of error as everything else."""
        self._refuse(ApiError(400, "this is no valid HTTP request", code="invalid_http"))

    def _refuse(self, error: ApiError) -> None:
        body = json.dumps(error.content()).encode()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            headers = [
                ("content-type", "application/json"),
                ("content-length", str(len(body))),
                ("connection", "close"),
            ]
            reason = {400: b"Bad Request", 408: b"Request Timeout"}[error.status]
            response = h11.Response(status_code=error.status, headers=headers, reason=reason)
            for part in (response, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(part) or b"")
        self.transport.close()

"""An S3 server from PyPI (moto) behind a wrapper that fails, dawdles and keeps account of who moved how much."""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

ANSWERS = {"errors": ("500 Internal Server Error", "InternalError"), "busy": ("503 Slow Down", "SlowDown")}
KEY = re.compile(r"Credential=([^/]+)/")


@dataclass
class Faults:
    """Of each hundred requests so many are answered with 500, with 503, or after `seconds`."""

    errors: int = 0
    busy: int = 0
    slow: int = 0
    seconds: float = 0.5
    only: str = ""
    """Only requests whose path has this in it."""


@dataclass
class Server:
    """The wrapped application, and what passed through it by access key."""

    app: Callable[..., Iterable[bytes]]
    faults: Faults = field(default_factory=Faults)
    requests: Counter[str] = field(default_factory=Counter)
    moved: Counter[str] = field(default_factory=Counter)
    """Bytes of bodies, up and down."""
    injected: Counter[str] = field(default_factory=Counter)
    due: list[tuple[int, Callable[[], object]]] = field(default_factory=list)
    """What is to be done when so many requests were made, in order."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    count: int = 0

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        found = KEY.search(environ.get("HTTP_AUTHORIZATION", ""))
        who = found[1] if found else "nobody"
        with self.lock:
            self.requests[who] += 1
            self.moved[who] += int(environ.get("CONTENT_LENGTH") or 0)
            self.count += 1
            place = self.count * 37 % 100  # each hundred has every place once
            due = self.due.pop(0)[1] if self.due and self.count >= self.due[0][0] else None
        if due:
            due()
        kind = self._fault(place) if self.faults.only in environ["PATH_INFO"] else ""
        if kind:
            with self.lock:
                self.injected[kind] += 1
        if kind in ("errors", "busy"):
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            status, code = ANSWERS[kind]
            body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>injected</Message></Error>".encode()
            start(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
            return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]
        if kind == "slow":
            time.sleep(self.faults.seconds)
        answer = b"".join(self.app(environ, start))
        with self.lock:
            self.moved[who] += len(answer)
        return [answer]

    def _fault(self, place: int) -> str:
        for kind in ("errors", "busy", "slow"):
            share = getattr(self.faults, kind)
            if place < share:
                return kind
            place -= share
        return ""


def serve() -> tuple[Server, Any]:
    """(what to ask and to tell, the running server); `shutdown` it."""
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    server = Server(DomainDispatcherApplication(create_backend_app))
    running = make_server("127.0.0.1", 0, server, threaded=True)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    return server, running

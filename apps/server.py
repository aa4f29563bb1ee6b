"""`groundup serve`: the champion, or any model's directory, behind an OpenAI-compatible HTTP API.

One process, two threads that matter: the event loop speaks HTTP, one thread draws tokens for all requests together in
one batch, which rows join and leave at every token. Everything stands in apps/serving/.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import signal
import socket
import threading
from collections.abc import AsyncIterator, Callable

import uvicorn
from fastapi import FastAPI

from apps.serving import api, errors
from apps.serving.connection import Connection
from apps.serving.guards import Guards
from apps.serving.metrics import Metrics
from apps.serving.options import ServeOptions
from apps.serving.reload import Reloader
from apps.serving.served import Served, Source
from apps.serving.thread import MakeEngine, ModelThread
from llm_core.contract import BadInput
from llm_core.model.engine import Engine
from llm_core.model.transformer import Transformer

PORT = 8000
BACKLOG = 2048
OPEN_FILES = 16_384
"""Connections that may be open, if the system lets us."""
FINISH_SECONDS = 30
"""How long running answers may take to end after SIGTERM."""


def serve(source: Source, options: ServeOptions, tell: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT; running answers are finished first.

    `tell` gets one line once requests are taken. Raises `BadInput` if the model or the address cannot be had.
    """
    served = source.load()
    listener = listen(options)
    _allow_open_files()
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    app = make_app(source, served, options)
    line = f"serving {served.version} as {options.name!r} at http://{shown}:{port}/v1, metrics at /metrics"
    server = make_server(app, options, lambda: tell(line))
    server.run(sockets=[listener])


def make_app(source: Source, served: Served, options: ServeOptions, make: MakeEngine | None = None) -> FastAPI:
    """The ASGI application; its model's thread lives as long as it does. `make` builds engines (tests slow them)."""
    metrics = Metrics()
    answering = api.Answering(options, metrics)

    @contextlib.asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        thread = ModelThread(served, options.max_rows, options.max_queue, metrics, make or _engine)
        answering.thread = thread
        reloader = Reloader(source, thread, metrics, options.watch_seconds)
        watching = asyncio.create_task(reloader.run())
        on_main = threading.current_thread() is threading.main_thread()
        if on_main:
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reloader.ask)
        app.state.reload = reloader.ask
        yield
        if on_main:
            asyncio.get_running_loop().remove_signal_handler(signal.SIGHUP)
        watching.cancel()
        await thread.stop()

    app = FastAPI(title="Groundup", version="1", lifespan=life, docs_url=None, redoc_url=None)
    app.include_router(api.routes(answering))
    errors.install(app)
    app.add_middleware(Guards, options=options, metrics=metrics)
    return app


def make_server(app: FastAPI, options: ServeOptions, ready: Callable[[], None]) -> uvicorn.Server:
    """uvicorn with our limits; `ready` is called when it takes requests."""

    class Limited(Connection):
        header_seconds = options.receive_seconds

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                ready()

    config = uvicorn.Config(
        app,
        http=Limited,
        ws="none",
        lifespan="on",
        log_level="warning",
        access_log=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=max(1, round(options.receive_seconds)),
        timeout_graceful_shutdown=FINISH_SECONDS,
    )
    return Server(config)


def listen(options: ServeOptions) -> socket.socket:
    """A socket bound to the address. Raises `BadInput` if it is taken or not ours."""
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    for port in (PORT, 0) if options.port is None else (options.port,):
        try:
            return socket.create_server((options.host.strip("[]"), port), family=family, backlog=BACKLOG)
        except (OSError, OverflowError) as error:
            reason = error
    raise BadInput(f"--host {options.host} --port {port}: cannot listen there ({reason})") from reason


def _engine(model: Transformer, max_rows: int) -> Engine:
    return Engine(model, max_rows)


def _allow_open_files() -> None:
    """A connection is an open file, and the usual limit of 1,024 would let idle ones lock everybody out."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    logging.getLogger("groundup.serve").debug("open files: %d", wanted)

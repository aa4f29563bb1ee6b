"""Another champion takes over while the server runs: on SIGHUP, or when the registry's alias points elsewhere."""

from __future__ import annotations

import asyncio
import logging

from apps.serving.metrics import Metrics
from apps.serving.served import Source
from apps.serving.thread import ModelThread

log = logging.getLogger("groundup.serve")


class Reloader:
    """Loads in another thread, so that answering goes on; what cannot be loaded leaves the old model in place."""

    def __init__(self, source: Source, thread: ModelThread, metrics: Metrics, every: float) -> None:
        self._source, self._thread, self._metrics = source, thread, metrics
        self._every = every if source.watched else 0.0
        self._asked = asyncio.Event()
        self._failed: str | None = None

    def ask(self) -> None:
        """Look for another model now, and try one again that failed; a handler of SIGHUP."""
        self._failed = None
        self._asked.set()

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            await self._wait()
            try:
                await self._look()
            except Exception:
                self._metrics.failures.labels("load").inc()
                log.exception("the new model cannot be served; %s stays", self._thread.served.version)

    async def _wait(self) -> None:
        """Until somebody asks, or it is time."""
        try:
            await asyncio.wait_for(self._asked.wait(), self._every or None)
        except TimeoutError:
            return
        self._asked.clear()

    async def _look(self) -> None:
        digest = await asyncio.to_thread(self._source.digest)
        if digest in (None, self._thread.served.digest, self._failed):
            return
        self._failed = digest  # until it is served: a broken one is not tried again every few seconds
        served = await asyncio.to_thread(self._source.load)
        await self._thread.swap(served)
        self._failed = None
        log.warning("new requests go to %s, %s", served.version, served.digest[:12])

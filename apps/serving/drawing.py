"""From a job's tokens to text, until it ends, its time is over, or its client has left."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable
from typing import TypeVar

from starlette.requests import Request as HttpRequest

from apps.serving.metrics import Metrics
from apps.serving.thread import Job, ModelThread
from apps.serving.transcript import Delta, Transcript

T = TypeVar("T")


class ClientLeft(Exception):
    """The connection is gone; nobody will read an answer."""


async def unless_left(request: HttpRequest, work: Awaitable[T]) -> T:
    """The result of `work`. Raises `ClientLeft`, with `work` cancelled, as soon as the client is gone."""
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientLeft
        return working.result()
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _left(request: HttpRequest) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def deltas(
    thread: ModelThread, job: Job, stops: list[str], seconds: float, metrics: Metrics
) -> AsyncIterator[tuple[list[tuple[int, Delta]], list[Transcript]]]:
    """(what is new for which rows, all rows' transcripts), until each row has ended.

    A row that is not through after `seconds` ends with "length". However this generator is left, its rows are freed.
    """
    served = job.served
    transcripts = [Transcript(served.pieces, stops, served.stop_ids) for _ in job.requests]
    waited = time.monotonic() - job.began
    timer = asyncio.get_running_loop().call_later(max(0.0, seconds - waited), job.put, [(0, TimeoutError())])
    first = True
    try:
        while job.open:
            try:
                drawn = await job.drawn()
            except TimeoutError:
                if first:
                    raise thread.busy("no place in the batch was free in time; try again later") from None
                yield [(row, transcripts[row].end("length")) for row in sorted(job.open)], transcripts
                return
            if first:
                metrics.first_token.observe(time.monotonic() - job.began)
                first = False
            found: dict[int, Delta] = {}
            for row, token in drawn:  # several of a row, if the loop was busy: they leave as one event
                if not transcripts[row].finish:
                    delta = transcripts[row].take(token.token, token.logprob, token.top, token.finished)
                    found.setdefault(row, Delta()).add(delta)
                    if delta.finish:
                        thread.close(job, row)
            if found:
                yield list(found.items()), transcripts
    finally:
        timer.cancel()
        for row in list(job.open):
            thread.close(job, row)

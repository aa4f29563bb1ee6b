"""The routes. A request becomes rows of a job, the job's tokens become text, and text leaves in OpenAI's shape."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter
from fastapi import Request as HttpRequest
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from apps.serving import prompts, schema
from apps.serving.answers import DONE, ChatForm, Envelope, Form, TextForm
from apps.serving.drawing import ClientLeft, deltas, unless_left
from apps.serving.errors import ApiError, as_api_error
from apps.serving.metrics import Metrics
from apps.serving.options import ServeOptions
from apps.serving.served import Served
from apps.serving.thread import Job, ModelThread
from apps.serving.transcript import Delta, Transcript
from llm_core.contract import BadInput

REFUSALS: dict[int | str, dict[str, Any]] = {
    400: {"model": schema.ErrorBody, "description": "Something is wrong with the request."},
    401: {"model": schema.ErrorBody, "description": "The API key is missing or wrong."},
    403: {"model": schema.ErrorBody, "description": "The server has no key and was called by a foreign host name."},
    404: {"model": schema.ErrorBody, "description": "No such model."},
    408: {"model": schema.ErrorBody, "description": "The body took too long to arrive."},
    413: {"model": schema.ErrorBody, "description": "The body is too large."},
    429: {"model": schema.ErrorBody, "description": "The queue is full; Retry-After says when to come back."},
}
STREAM = {"text/event-stream": {"schema": {"type": "string"}}}
Found = AsyncIterator[tuple[list[tuple[int, Delta]], list[Transcript]]]


class Answering:
    """What the routes share; `thread` is there once the server has started."""

    thread: ModelThread

    def __init__(self, options: ServeOptions, metrics: Metrics) -> None:
        self.options, self.metrics = options, metrics

    def model(self, name: str) -> Served:
        """The served model. Raises `ApiError` 404 if it has another name."""
        if name != self.options.name:
            text = f"no model of that name; this server has {self.options.name!r}"
            raise ApiError(404, text, param="model", code="model_not_found")
        return self.thread.served

    async def answer(
        self, http: HttpRequest, request: schema.Sampling, job: Job, envelope: Envelope, stops: list[str]
    ) -> Response:
        """Take the job in and say what comes of it, as one response or as a stream."""
        self.thread.submit(job)
        found = deltas(self.thread, job, stops, self.options.request_seconds, self.metrics)
        try:
            if not request.stream:
                return JSONResponse(await unless_left(http, _whole(envelope, found)))
            first = await unless_left(http, anext(found))  # what is refused now still has a status of its own
        except ClientLeft:
            self.metrics.left.inc()
            return Response(status_code=499)
        except BaseException:
            await found.aclose()  # type: ignore[attr-defined]
            raise
        options = request.stream_options or schema.StreamOptions()
        events = _events(envelope, first, found, usage=options.include_usage)
        return EventStream(events, self.metrics)


class EventStream(StreamingResponse):
    """A stream whose generator is closed when the client leaves, so that its rows are freed at once."""

    def __init__(self, events: AsyncIterator[bytes], metrics: Metrics) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self._events, self._metrics, self._ended = events, metrics, False

    async def stream_response(self, send: Send) -> None:
        """Send all events."""
        await super().stream_response(send)
        self._ended = True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send until the end, or until nobody listens."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            if not self._ended:
                self._metrics.left.inc()
            await self._events.aclose()  # type: ignore[attr-defined]


async def _whole(envelope: Envelope, found: Found) -> dict[str, Any]:
    """Collect everything, then say it."""
    whole: dict[int, Delta] = {}
    transcripts: list[Transcript] = []
    async with aclosing(found):  # type: ignore[type-var]
        async for news, transcripts in found:  # noqa: B007 - the last ones are used below
            for row, delta in news:
                whole.setdefault(row, Delta()).add(delta)
    choices = [envelope.form.choice(row, whole[row], whole=True) for row in sorted(whole)]
    return envelope.response(choices, transcripts)


async def _events(
    envelope: Envelope, first: tuple[list[tuple[int, Delta]], list[Transcript]], found: Found, *, usage: bool
) -> AsyncIterator[bytes]:
    """The events of a stream; an error that comes in its midst is its last event."""
    form, more = envelope.form, {"usage": None} if usage else {}
    news, transcripts = first
    async with aclosing(found):  # type: ignore[type-var]
        try:
            for opening in filter(None, map(form.opening, range(len(transcripts)))):
                yield envelope.event([opening], **more)
            while True:
                for row, delta in news:
                    if delta.text or delta.scored or delta.finish:
                        yield envelope.event([form.choice(row, delta, whole=False)], **more)
                news, _ = await anext(found)
        except StopAsyncIteration:
            if usage:
                yield envelope.event([], usage=envelope.usage(transcripts))
            yield DONE
        except (ApiError, BadInput) as error:
            yield as_api_error(error).event()


def routes(answering: Answering) -> APIRouter:
    """All routes of the API."""
    router = APIRouter()
    router.include_router(_answers(answering))
    router.include_router(_about(answering))
    return router


def _answers(answering: Answering) -> APIRouter:
    router = APIRouter(prefix="/v1", responses=REFUSALS)

    def described(model: type) -> dict[int | str, dict[str, Any]]:
        return {200: {"model": model, "content": STREAM, "description": "The answer, or a stream of its parts."}}

    @router.post("/chat/completions", responses=described(schema.ChatCompletion))
    async def chat(request: schema.ChatRequest, http: HttpRequest) -> Response:
        """Answer the last message of a conversation."""
        served = answering.model(request.model)
        if request.top_logprobs and not request.logprobs:
            raise ApiError(400, "top_logprobs: needs logprobs to be true", param="top_logprobs")
        ids = [await prompts.chat_prompt(served, request)]
        asked = request.max_completion_tokens or request.max_tokens
        drawn = prompts.rows(served, request, ids, asked, answering.options, request.top_logprobs or 0)
        form: Form = ChatForm(served, bool(request.logprobs))
        envelope = Envelope(served, request.model, form, ids)
        return await answering.answer(http, request, Job(served, drawn), envelope, request.stops())

    @router.post("/completions", responses=described(schema.Completion))
    async def complete(request: schema.CompletionRequest, http: HttpRequest) -> Response:
        """Continue a text, or several."""
        served, samples = answering.model(request.model), request.n or 1
        if request.best_of not in (None, samples):
            raise ApiError(400, "best_of: this server does not support it beyond n", param="best_of")
        if request.echo and request.logprobs is not None:
            raise ApiError(400, "echo: this server does not score prompts; leave out logprobs", param="echo")
        ids = await prompts.completion_prompts(served, request)
        longest = max(map(len, ids))
        asked = request.max_tokens or max(1, min(prompts.DEFAULT_COMPLETION, served.context - longest))
        drawn = prompts.rows(served, request, ids, asked, answering.options, request.logprobs or 0)
        echoes = [served.text(row.prompt) if request.echo else "" for row in drawn]
        form: Form = TextForm(served, request.logprobs is not None, echoes)
        envelope = Envelope(served, request.model, form, ids)
        return await answering.answer(http, request, Job(served, drawn), envelope, request.stops())

    return router


def _about(answering: Answering) -> APIRouter:
    router = APIRouter()

    def card() -> schema.ModelCard:
        served = answering.thread.served
        return schema.ModelCard(
            id=answering.options.name,
            object="model",
            created=served.created,
            owned_by="groundup",
            root=served.digest,
            version=served.version,
            max_model_len=served.context,
        )

    @router.get("/v1/models", responses={code: REFUSALS[code] for code in (401, 403)})
    async def models() -> schema.ModelList:
        """What is served."""
        return schema.ModelList(object="list", data=[card()])

    @router.get("/v1/models/{model}", responses={code: REFUSALS[code] for code in (401, 403, 404)})
    async def model(model: str) -> schema.ModelCard:
        """One model."""
        answering.model(model)
        return card()

    @router.get("/health", responses={503: {"model": schema.Health, "description": "The model's thread has ended."}})
    async def health(response: Response) -> schema.Health:
        """Whether the server can answer."""
        alive, served = answering.thread.alive, answering.thread.served
        response.status_code = 200 if alive else 503
        return schema.Health(status="ok" if alive else "failing", model=served.digest, version=served.version)

    @router.get(
        "/metrics",
        response_class=Response,
        responses={
            **{code: REFUSALS[code] for code in (401, 403)},
            200: {
                "content": {"text/plain": {"schema": {"type": "string"}}},
                "description": "Prometheus's text format.",
            },
        },
    )
    async def metrics() -> Response:
        """Figures for Prometheus."""
        return Response(answering.metrics.text(), media_type="text/plain; version=0.0.4")

    return router

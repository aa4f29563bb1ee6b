"""Every refusal in the shape that OpenAI's clients read: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from llm_core.contract import BadInput

log = logging.getLogger("groundup.serve")

SENTENCES = {
    "prompt": "must be a text, a list of texts, a list of token ids, or a list of such lists",
    "stop": "must be a text or a list of one to four texts",
    "content": "must be a text or a list of parts of type text",
}
"""For fields of several kinds, where pydantic would complain once for each kind."""


class ApiError(Exception):
    """A request that is not answered, with the status and words that tell the client why."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.kind, self.param, self.code, self.retry_after = status, kind, param, code, retry_after

    def content(self) -> dict[str, Any]:
        """The body of the response."""
        return {"error": {"message": str(self), "type": self.kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """The whole response."""
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse(self.content(), self.status, headers)

    def event(self) -> bytes:
        """The same as a server-sent event, for a stream that has begun."""
        return b"data: " + json.dumps(self.content()).encode() + b"\n\n"


def failed() -> ApiError:
    """What a client is told of a fault of ours; the log has the rest."""
    return ApiError(500, "the model failed on this request; the server's log says why", kind="server_error")


def install(app: FastAPI) -> None:
    """Let every error of the app leave in the one shape."""

    async def refused(_: Request, error: Exception) -> JSONResponse:
        return as_api_error(error).response()

    for kind in (ApiError, BadInput, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, refused)


def as_api_error(error: Exception) -> ApiError:
    """Any error as one that a client may see."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, RequestValidationError):
        return _invalid(error.errors())
    if isinstance(error, BadInput):
        return ApiError(400, str(error))
    if isinstance(error, HTTPException):
        codes = {404: "unknown_url", 405: "method_not_allowed"}
        return ApiError(error.status_code, str(error.detail), code=codes.get(error.status_code))
    log.error("a request failed", exc_info=error)
    return failed()


def _invalid(found: Sequence[Any]) -> ApiError:
    """The first complaint as one sentence. It never repeats the input, which may be large or no Unicode."""
    first = found[0]
    place = [part for part in first["loc"] if part != "body"]
    if first["type"] == "json_invalid":
        return ApiError(400, "the body is not valid JSON", code="invalid_json")
    if not place:
        return ApiError(400, "the body must be a JSON object, sent with content-type application/json")
    known = [str(part) for part in place if isinstance(part, int) or str(part).isidentifier()]
    several = next((i for i, part in enumerate(known) if part in SENTENCES), None)
    unknown = first["type"] == "extra_forbidden"
    if several is not None and not unknown:
        name = ".".join(known[: several + 1])
        return ApiError(400, f"{name}: {SENTENCES[known[several]] if _shape(first) else _said(first)}", param=name)
    name = ".".join(known) or "the body"
    if unknown:
        return ApiError(400, f"{name}: this server does not support it", param=name, code="unsupported_parameter")
    return ApiError(400, f"{name}: {_said(first)}", param=name)


def _shape(complaint: Any) -> bool:
    return complaint["type"] in ("string_type", "list_type", "int_type", "model_type", "model_attributes_type")


def _said(complaint: Any) -> str:
    text = str(complaint["msg"]).removeprefix("Value error, ")
    return text[:1].lower() + text[1:]

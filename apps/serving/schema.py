"""The requests and responses of the API, as far as it is served. What is not named here is refused by name.

Source of the shapes: OpenAI's API reference for chat completions, completions and models. `top_k`,
`repetition_penalty` and `ignore_eos` are extensions with vLLM's names.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

MOST_STOPS = 4
LONGEST_STOP = 256


def _plain(text: str) -> str:
    if "\0" in text:
        raise ValueError("holds a NUL character, which no text has")
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError("holds half of a surrogate pair, which is no character")
    return text


T = TypeVar("T", float, dict[str, float])


def _unsupported(value: T | None) -> T | None:
    if value:
        raise ValueError("this server does not support it; leave it out or send 0")
    return value


Text = Annotated[str, AfterValidator(_plain)]
Stop = Annotated[str, Field(min_length=1, max_length=LONGEST_STOP), AfterValidator(_plain)]
Id = Annotated[int, Field(ge=0, lt=1 << 31)]
Penalty = Annotated[float | None, Field(ge=-2, le=2), AfterValidator(_unsupported)]


class Strict(BaseModel):
    """A part of a request: no unknown fields, no numbers in strings, no NaN."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())


class StreamOptions(Strict):
    """What a stream tells besides the text."""

    include_usage: bool = False
    """Send the counts of tokens in one more chunk at the end."""
    include_obfuscation: bool = False
    """No effect."""


class Sampling(Strict):
    """What both kinds of request have."""

    model: str
    """The name that /v1/models lists."""
    max_tokens: int | None = Field(None, ge=1)
    """Most tokens of an answer."""
    temperature: float | None = Field(None, ge=0, le=2)
    """0 takes the likeliest token; 1 if left out."""
    top_p: float | None = Field(None, ge=0, le=1)
    """Draw only from the likeliest tokens that have this share together."""
    top_k: int | None = Field(None, ge=0)
    """Draw only from so many of the likeliest tokens; 0: from all."""
    repetition_penalty: float | None = Field(None, gt=0, le=10)
    """Above 1: tokens of the prompt and the answer so far become less likely (Keskar et al. 2019)."""
    ignore_eos: bool | None = None
    """Go on where the model would end its answer; for measuring speed."""
    n: int | None = Field(None, ge=1, le=128)
    """Answers to each prompt."""
    stop: Stop | Annotated[list[Stop], Field(max_length=MOST_STOPS)] | None = None
    """The answer ends before one of these."""
    seed: int | None = Field(None, ge=-(1 << 63), lt=1 << 63)
    """The same seed and request draw the same answer of the same model, whatever else is being answered."""
    stream: bool | None = None
    """Send the answer as it is drawn, as server-sent events."""
    stream_options: StreamOptions | None = None
    presence_penalty: Penalty = None
    """Not supported: only 0."""
    frequency_penalty: Penalty = None
    """Not supported: only 0."""
    logit_bias: Annotated[dict[str, float] | None, AfterValidator(_unsupported)] = None
    """Not supported: only empty."""
    user: str | None = None
    """No effect."""
    metadata: dict[str, Any] | None = None
    """No effect."""

    def stops(self) -> list[str]:
        """The texts before which an answer ends."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []


class CompletionRequest(Sampling):
    """POST /v1/completions: continue texts."""

    prompt: Text | list[Text] | list[Id] | list[list[Id]]
    """A text, token ids, or a list of either."""
    logprobs: int | None = Field(None, ge=0, le=20)
    """Tell the log-probability of each token, and of so many of the likeliest ones."""
    echo: bool | None = None
    """Begin the answer with the prompt."""
    best_of: int | None = Field(None, ge=1, le=128)
    """Not supported: only what n says."""
    suffix: Annotated[str | None, Field(max_length=0)] = None
    """Not supported: only empty."""


class TextPart(Strict):
    """A part of a message."""

    type: Literal["text"]
    text: Text


class Message(Strict):
    """What somebody said."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[TextPart]
    name: str | None = None
    """No effect."""

    def text(self) -> str:
        """All that was said."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class ResponseFormat(Strict):
    """The only form of an answer is text."""

    type: Literal["text"]


class ChatRequest(Sampling):
    """POST /v1/chat/completions: answer the last message of a conversation."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    """Most tokens of an answer; goes before max_tokens."""
    logprobs: bool | None = None
    """Tell the log-probability of each token."""
    top_logprobs: int | None = Field(None, ge=0, le=20)
    """And of so many of the likeliest ones; needs logprobs."""
    response_format: ResponseFormat | None = None


class Usage(BaseModel):
    """Counts of tokens; an answer's include the one that ended it."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


Finish = Literal["stop", "length"]


class TopLogprob(BaseModel):
    """A token that could have been drawn."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    """A token that was drawn."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    """The log-probability of each token of a chat's answer."""

    content: list[TokenLogprob]
    refusal: None


class ChatMessage(BaseModel):
    """An answer."""

    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(BaseModel):
    """One of n answers."""

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: Finish


class ChatCompletion(BaseModel):
    """The response to a chat request."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage


class CompletionLogprobs(BaseModel):
    """The log-probability of each token of a continuation."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class CompletionChoice(BaseModel):
    """One of n continuations of one of the prompts."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Finish


class Completion(BaseModel):
    """The response to a completion request."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage


class ModelCard(BaseModel):
    """What is served: `root` is the digest of its files, `max_model_len` its context in tokens."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    version: str
    max_model_len: int


class ModelList(BaseModel):
    """All that is served."""

    object: Literal["list"]
    data: list[ModelCard]


class ErrorDetail(BaseModel):
    """Why a request was not answered."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """A refusal."""

    error: ErrorDetail


class Health(BaseModel):
    """That the server answers, and with which model."""

    status: Literal["ok", "failing"]
    model: str
    version: str

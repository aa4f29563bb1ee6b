"""Requests become rows for the sampler: token ids, checked against the context, with a seed of their own."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from typing import Any

from apps.serving.errors import ApiError
from apps.serving.options import ServeOptions
from apps.serving.schema import ChatRequest, CompletionRequest, Sampling
from apps.serving.served import Served
from llm_core.data import dialogue
from llm_core.model.engine import Request

DEFAULT_COMPLETION = 16
"""Tokens of a completion that says nothing of its length, as at OpenAI."""
SHORT = 4096
"""Characters that are encoded at once; longer texts are encoded in another thread, so that nobody waits for them."""
COLDEST = 1e-3
"""A lower temperature takes the likeliest token."""
ROLES = {"developer": "system"}


async def chat_prompt(served: Served, request: ChatRequest) -> list[int]:
    """The conversation up to where the answer begins. Text that spells a special token stays text."""
    messages = [{"role": ROLES.get(m.role, m.role), "content": m.text()} for m in request.messages]
    size = sum(len(message["content"]) for message in messages)
    _check_size(served, size, "messages")
    if size <= SHORT:
        return dialogue.encode_prompt(messages, served.tokenizer)
    return await asyncio.to_thread(dialogue.encode_prompt, messages, served.tokenizer)


async def completion_prompts(served: Served, request: CompletionRequest) -> list[list[int]]:
    """Token ids of each prompt of the request."""
    given = request.prompt
    prompts: Sequence[Any] = [given] if isinstance(given, str) or (given and isinstance(given[0], int)) else given
    if not prompts:
        raise ApiError(400, "prompt: there is none", param="prompt")
    found = []
    for prompt in prompts:
        if isinstance(prompt, str):
            _check_size(served, len(prompt), "prompt")
            encode = served.tokenizer.encode
            found.append(encode(prompt) if len(prompt) <= SHORT else await asyncio.to_thread(encode, prompt))
        else:
            found.append(list(prompt))
        if found[-1] and max(found[-1]) >= len(served.pieces):
            raise ApiError(400, f"prompt: the model has token ids 0 to {len(served.pieces) - 1}", param="prompt")
        if not found[-1]:
            raise ApiError(400, "prompt: it is empty; the model needs at least one token to begin with", param="prompt")
    return found


def rows(
    served: Served,
    request: Sampling,
    prompts: Sequence[Sequence[int]],
    asked: int | None,
    options: ServeOptions,
    top: int,
) -> list[Request]:
    """A row for each prompt and each of its n answers. `asked`: most new tokens, None for all that there is room for.

    Raises `ApiError` 400 where prompt and answer exceed the context, or the rows exceed what the server draws at once.
    """
    samples = request.n or 1
    if samples * len(prompts) > options.max_rows:
        text = f"n: {samples} answers to {len(prompts)} prompts; the server draws {options.max_rows} at once"
        raise ApiError(400, text, param="n")
    seed = secrets.randbits(63) if request.seed is None else request.seed % (1 << 64)
    temperature = 1.0 if request.temperature is None else request.temperature
    found = []
    for place, prompt in enumerate(prompts):
        room = _room(served, len(prompt), asked, options)
        for sample in range(samples):
            row = Request(
                prompt=prompt,
                max_new_tokens=room,
                temperature=temperature if temperature >= COLDEST else 0.0,
                top_k=request.top_k or 0,
                top_p=1.0 if request.top_p is None else max(request.top_p, 1e-6),
                repetition_penalty=request.repetition_penalty or 1.0,
                stop_ids=frozenset() if request.ignore_eos else served.stop_ids,
                seed=(seed, place, sample),
                top_logprobs=top,
            )
            found.append(row)
    return found


def _room(served: Served, taken: int, asked: int | None, options: ServeOptions) -> int:
    """New tokens that a prompt of `taken` tokens may get."""
    if taken >= served.context:
        _too_long(served, f"your prompt has {taken}")
    if asked is not None and options.max_tokens and asked > options.max_tokens:
        raise ApiError(400, f"max_tokens: this server draws at most {options.max_tokens}", param="max_tokens")
    if asked is not None and taken + asked > served.context:
        _too_long(served, f"you asked for {taken + asked}: {taken} in the prompt, {asked} for the answer")
    room = served.context - taken
    return min(filter(None, (room, asked, options.max_tokens)))


def _check_size(served: Served, characters: int, param: str) -> None:
    """Refuse what cannot fit before it is encoded: a token has at most `longest` bytes."""
    if characters > served.context * served.longest:
        _too_long(served, f"a text of {characters} characters has more", param)


def _too_long(served: Served, what: str, param: str | None = None) -> None:
    text = f"the model's context takes {served.context} tokens, prompt and answer together; {what}"
    raise ApiError(400, text, param=param, code="context_length_exceeded")

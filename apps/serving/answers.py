"""What is said to the client: whole answers and the events of a stream, in OpenAI's two forms."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Sequence
from typing import Any, Protocol

from apps.serving.served import Served
from apps.serving.transcript import LOWEST, Delta, Scored, Transcript

encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
DONE = b"data: [DONE]\n\n"


class Form(Protocol):
    """One of the two forms of an answer."""

    whole: str
    part: str
    prefix: str

    def opening(self, row: int) -> dict[str, Any] | None:
        """The choice of the first event of a row, if there is something to say before any text."""

    def choice(self, row: int, delta: Delta, *, whole: bool) -> dict[str, Any]:
        """A choice with new text; `whole`: it is all there is."""


class Envelope:
    """What all parts of a response have in common, and its choices in the asked form."""

    def __init__(self, served: Served, model: str, form: Form, prompts: Sequence[Sequence[int]]) -> None:
        self.form = form
        self._prompt_tokens = sum(map(len, prompts))
        self._head = {
            "id": f"{form.prefix}-{secrets.token_hex(12)}",
            "object": form.whole,
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": served.fingerprint,
        }
        self._start = "data: " + encode({**self._head, "object": form.part})[:-1] + ","

    def response(self, choices: list[dict[str, Any]], transcripts: Sequence[Transcript]) -> dict[str, Any]:
        """The whole response."""
        return {**self._head, "choices": choices, "usage": self.usage(transcripts)}

    def event(self, choices: list[dict[str, Any]], **more: Any) -> bytes:
        """One event of a stream."""
        return (self._start + encode({"choices": choices, **more})[1:] + "\n\n").encode()

    def usage(self, transcripts: Sequence[Transcript]) -> dict[str, int]:
        """Counts of tokens; each prompt counts once."""
        drawn = sum(transcript.tokens for transcript in transcripts)
        return {
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": drawn,
            "total_tokens": self._prompt_tokens + drawn,
        }


class ChatForm:
    """/v1/chat/completions."""

    whole, part, prefix = "chat.completion", "chat.completion.chunk", "chatcmpl"

    def __init__(self, served: Served, logprobs: bool) -> None:
        self._names, self._logprobs = Names(served), logprobs

    def opening(self, row: int) -> dict[str, Any]:
        """Who speaks."""
        delta = {"role": "assistant", "content": "", "refusal": None}
        return {"index": row, "delta": delta, "logprobs": None, "finish_reason": None}

    def choice(self, row: int, delta: Delta, *, whole: bool) -> dict[str, Any]:
        """A message, or the next words of one."""
        logprobs = {"content": [self._scored(s) for s in delta.scored], "refusal": None} if self._logprobs else None
        found = {"index": row, "logprobs": logprobs, "finish_reason": delta.finish or None}
        if whole:
            return {**found, "message": {"role": "assistant", "content": delta.text, "refusal": None}}
        return {**found, "delta": {"content": delta.text} if delta.text or not delta.finish else {}}

    def _scored(self, scored: Scored) -> dict[str, Any]:
        top = [self._named(token, logprob) for token, logprob in scored.top]
        return {**self._named(scored.token, scored.logprob), "top_logprobs": top}

    def _named(self, token: int, logprob: float) -> dict[str, Any]:
        return {
            "token": self._names.text(token),
            "logprob": max(logprob, LOWEST),
            "bytes": list(self._names.bytes(token)),
        }


class TextForm:
    """/v1/completions. `echoes`: the prompt's text for each row, which goes before the answer."""

    whole = part = "text_completion"
    prefix = "cmpl"

    def __init__(self, served: Served, logprobs: bool, echoes: Sequence[str]) -> None:
        self._names, self._logprobs, self._echoes = Names(served), logprobs, echoes

    def opening(self, row: int) -> dict[str, Any] | None:
        """The prompt, if it is to be repeated."""
        echo = self._echoes[row]
        return {"index": row, "text": echo, "logprobs": None, "finish_reason": None} if echo else None

    def choice(self, row: int, delta: Delta, *, whole: bool) -> dict[str, Any]:
        """A text, or its next characters."""
        return {
            "index": row,
            "text": self._echoes[row] + delta.text if whole else delta.text,
            "logprobs": self._table(row, delta) if self._logprobs else None,
            "finish_reason": delta.finish or None,
        }

    def _table(self, row: int, delta: Delta) -> dict[str, Any]:
        text, before = self._names.unique, len(self._echoes[row])
        return {
            "tokens": [text(scored.token) for scored in delta.scored],
            "token_logprobs": [scored.logprob for scored in delta.scored],
            "top_logprobs": [
                {text(token): max(logprob, LOWEST) for token, logprob in scored.top} for scored in delta.scored
            ],
            "text_offset": [before + scored.offset for scored in delta.scored],
        }


class Names:
    """How tokens are shown one by one."""

    def __init__(self, served: Served) -> None:
        self._pieces = served.pieces
        self._specials = {number: name for name, number in served.tokenizer.specials.items()}

    def text(self, token: int) -> str:
        """The token's text; U+FFFD for bytes that are only part of a character."""
        return self._specials.get(token) or self._pieces[token].decode(errors="replace")

    def unique(self, token: int) -> str:
        r"""The token's text, or bytes:\xf0\x9f for what is only part of a character: a table needs a name for each."""
        name = self.text(token)
        return name if "\ufffd" not in name else "bytes:" + "".join(f"\\x{byte:02x}" for byte in self._pieces[token])

    def bytes(self, token: int) -> bytes:
        """The token's bytes; a special token's are those of its name."""
        return self._specials[token].encode() if token in self._specials else self._pieces[token]

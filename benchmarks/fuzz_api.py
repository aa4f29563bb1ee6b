"""The API's application in this process, asked without a socket: the target `api` of fuzz_targets.py."""

from __future__ import annotations

import asyncio
import json
from functools import cache
from typing import Any

from benchmarks.fuzz_readers import Wrong, folder, small_tokenizer


class _Server:
    """The API's application in this process, with its lifespan running in an event loop of its own."""

    def __init__(self) -> None:
        import torch

        from apps import server
        from apps.serving.options import ServeOptions
        from apps.serving.served import Folder
        from llm_core.model.checkpoint import save_model
        from llm_core.model.config import ModelConfig
        from llm_core.model.transformer import Transformer

        torch.set_num_threads(1)
        torch.manual_seed(0)
        shape = {"layers": 1, "heads": 2, "width": 16, "context": 64, "tied": False}
        place = folder() / "model"
        place.mkdir()
        save_model(Transformer(ModelConfig.preset("qwen3", vocab_size=320, **shape)), place, small_tokenizer())
        source, options = Folder(place), ServeOptions(port=0, max_tokens=4, watch_seconds=0, request_seconds=60)
        self.app = server.make_app(source, source.load(), options)
        self.loop = asyncio.new_event_loop()
        self._life = self.app.router.lifespan_context(self.app)
        self.loop.run_until_complete(self._life.__aenter__())

    def ask(self, method: str, path: str, headers: list[tuple[bytes, bytes]], body: bytes) -> tuple[int, bytes]:
        """(status, body) of one request."""
        return self.loop.run_until_complete(self._ask(method, path, headers, body))

    async def _ask(self, method: str, path: str, headers: list[tuple[bytes, bytes]], body: bytes) -> tuple[int, bytes]:
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http",
            "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "", "headers": headers,
            "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80), "state": {},
        }  # fmt: skip
        sent: list[Any] = []
        waiting: list[Any] = [{"type": "http.request", "body": body, "more_body": False}]
        never = asyncio.Event()

        async def receive() -> Any:
            if not waiting:
                await never.wait()
            return waiting.pop()

        async def send(message: Any) -> None:
            sent.append(message)

        await self.app(scope, receive, send)
        return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:])


@cache
def _server() -> _Server:
    return _Server()


def api(data: bytes) -> str:
    """A request: the first byte chooses path and method, the rest is the body."""
    paths = (
        "/v1/completions",
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/chat/completions",
        "/v1/models",
        "/v1/x",
    )
    choice = data[0] if data else 0
    path = paths[choice % len(paths)]
    method = "POST" if choice // len(paths) % 8 else "PATCH"
    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    status, body = _server().ask(method, path, headers, data[1:])
    if status >= 500:
        raise Wrong(f"status {status}: {body[:200]!r}")
    if status >= 400 and set(json.loads(body)["error"]) != {"message", "type", "param", "code"}:
        raise Wrong(f"a refusal in another shape: {body[:200]!r}")
    return f"status {status}"

"""A tiny random model, and a real server around it on a free loopback port."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from apps import server
from apps.serving.options import ServeOptions
from apps.serving.served import Folder, Source

PATIENCE = 120.0
TEXT = "the quick brown fox jumps over the lazy dog; what is seven plus five? h\u00e9llo \u65e5\u672c\u8a9e 0123456789 "


def make_model(folder: Path, seed: int, context: int = 256) -> Path:
    """A random model of two layers with a tokenizer of its own; its texts are noise, every token is likely."""
    import torch

    from llm_core.data import bpe
    from llm_core.model.checkpoint import save_model
    from llm_core.model.config import ModelConfig
    from llm_core.model.transformer import Transformer

    tokenizer = bpe.train([TEXT] * 20, 320)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Transformer(
            ModelConfig.preset("qwen3", vocab_size=320, layers=2, heads=2, width=32, context=context, tied=False)
        )
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape) * 0.1)
    folder.mkdir(parents=True)
    save_model(model, folder, tokenizer)
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Context 256."""
    return make_model(tmp_path_factory.mktemp("serve") / "tiny", seed=0)


@pytest.fixture(scope="session")
def long_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Context 4,096: an answer takes as long as a test needs."""
    return make_model(tmp_path_factory.mktemp("serve") / "long", seed=1, context=4096)


@dataclass
class Running:
    """A server that runs."""

    url: str
    app: Any
    options: ServeOptions
    http: httpx.Client = field(repr=False)

    def figure(self, name: str) -> float:
        """A figure of /metrics, summed over its labels."""
        lines = self.http.get("/metrics").text.splitlines()
        found = [line.rpartition(" ")[2] for line in lines if line.split("{")[0].split(" ")[0] == f"groundup_{name}"]
        return sum(map(float, found))

    def until(self, holds: Callable[[], bool], what: str) -> None:
        """Wait for something that must come."""
        deadline = time.monotonic() + PATIENCE
        while not holds():
            assert time.monotonic() < deadline, f"{what}: not within {PATIENCE:.0f} s"
            time.sleep(0.02)


@contextmanager
def running(model: Path | Source, make: Any = None, **options: Any) -> Iterator[Running]:
    """uvicorn in a thread, as `groundup serve` starts it, closed at the end."""
    chosen = ServeOptions(port=0, **options)
    source = Folder(model) if isinstance(model, Path) else model
    app = server.make_app(source, source.load(), chosen, make)
    ready, listener = threading.Event(), server.listen(chosen)
    uvicorn = server.make_server(app, chosen, ready.set)
    thread = threading.Thread(target=uvicorn.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    assert ready.wait(PATIENCE)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    with httpx.Client(base_url=url, timeout=PATIENCE) as http:
        yield Running(url, app, chosen, http)
    uvicorn.should_exit = True
    thread.join(PATIENCE)
    assert not thread.is_alive()


@pytest.fixture(scope="session")
def served(tiny_model: Path) -> Iterator[Running]:
    """The tiny model with the usual limits."""
    with running(tiny_model) as found:
        yield found

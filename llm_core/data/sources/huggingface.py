"""Datasets in the Hub's form, streamed: a hub id and a local folder go through the same call."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from llm_core.contract import BadInput

REACH_SECONDS = 5.0


def rows(path: str, config: str | None, split: str, revision: str | None) -> Iterator[Mapping[str, Any]]:
    """The rows of a dataset's split, streamed.

    Raises `BadInput` at once if it can be neither found nor reached: `datasets` itself would try for 23 seconds.
    """
    folder = Path(path)
    if not folder.exists():
        _reach(path)
    import datasets  # takes a second, and only this source needs it

    datasets.disable_progress_bars()
    where = str(folder.resolve()) if folder.exists() else path
    try:
        yield from datasets.load_dataset(where, config, split=split, revision=revision, streaming=True)
    except (FileNotFoundError, ValueError, ConnectionError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise BadInput(f"acquire.sources.path: {path!r} cannot be read as a dataset: {reason}") from error


def _reach(path: str) -> None:
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        raise BadInput(f"acquire.sources.path: {path!r} is no local folder, and HF_HUB_OFFLINE forbids the network")
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return
    host = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co")).hostname or "huggingface.co"
    try:
        socket.create_connection((host, 443), REACH_SECONDS).close()
    except OSError as error:
        raise BadInput(f"acquire.sources.path: {path!r} is no local folder, and {host} cannot be reached") from error

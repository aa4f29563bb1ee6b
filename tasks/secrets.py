"""Secrets stand in the environment (or in Prefect's blocks, which end there) and nowhere else.

Settings are written into MLflow, reports and logs, so a setting that carries a password is refused, and the refusal
does not repeat it. An address of the environment that carries one is taken apart before anything can print it.
"""

from __future__ import annotations

import base64
import json
import os
import re
import urllib.request
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

from llm_core.contract import BadInput

USER, PASSWORD = "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"
_IN_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^/?#\s@]+@")
_IN_QUERY = re.compile(r"(?<![a-z0-9+.-])(?!https?:)[a-z][a-z0-9+.-]*://[^\s?#]*\?[^\s#]*=", re.IGNORECASE)
"""Of a store's URL: the web's may ask for something, a store's can only carry a key or a signature."""
_NAMES = re.compile(r"passw|secret|token$|api_?key|credential|private_?key", re.IGNORECASE)
_KNOWN = re.compile(r"\b(hf_[A-Za-z0-9]{30,}|AKIA[A-Z0-9]{16}|gh[pousr]_[A-Za-z0-9]{30,}|sk-[A-Za-z0-9_-]{30,})")


def refuse(section: str, settings: Any, source: str) -> None:
    """Raise `BadInput` naming the setting, never its value, if one of a section's settings carries a secret."""
    for field, text in _texts(section, settings):
        if _IN_ADDRESS.search(text) or _IN_QUERY.search(text) or _KNOWN.search(text):
            raise BadInput(
                f"{source}: {field}: it carries a password or token; settings are kept in reports and MLflow, so"
                " secrets must stand in the environment"
            )


def names_a_secret(field: str) -> bool:
    """Whether what stands under this name should not be repeated in a message."""
    return bool(_NAMES.search(field.rpartition(".")[2]))


def _texts(place: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield place, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _texts(f"{place}.{key}", inner)
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            yield from _texts(f"{place}.{number}", inner)


def shown(address: str) -> str:
    """An address as it may be printed: without the name and password that may stand before its host."""
    parts = urlsplit(address)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])) if "@" in parts.netloc else address


def tracker(address: str) -> str:
    """MLflow's address without name and password, which go where MLflow's client looks for them."""
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or "@" not in parts.netloc:
        return address
    user, _, password = parts.netloc.rpartition("@")[0].partition(":")
    os.environ[USER], os.environ[PASSWORD] = unquote(user), unquote(password)
    return shown(address)


def answer_of_tracker(url: str) -> dict[str, Any] | None:
    """The JSON that MLflow's server answers to a GET, asked under the environment's name; None if it does not."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=tracker_headers()), timeout=5) as response:
            answer: dict[str, Any] = json.load(response)
    except (OSError, ValueError):
        return None
    return answer


def tracker_headers() -> dict[str, str]:
    """The header by which MLflow's server knows us, if the environment names a user."""
    if USER not in os.environ:
        return {}
    pair = f"{os.environ[USER]}:{os.environ.get(PASSWORD, '')}".encode()
    return {"Authorization": f"Basic {base64.b64encode(pair).decode()}"}

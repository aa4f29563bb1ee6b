"""Whether a host can be reached, asked once and answered within seconds, before anything that would keep on trying."""

from __future__ import annotations

import os
import socket
import threading
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

SECONDS = 5.0


def reachable(url: str, seconds: float = SECONDS) -> bool:
    """Whether the URL's host, or the proxy that stands before it, takes a connection within `seconds`.

    Looking up a name can take far longer than a connection and cannot be given a limit, so both happen in a thread
    that nobody waits for longer.
    """
    parts = urlsplit(url)
    proxies = getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if proxy and not proxy_bypass(parts.hostname or ""):
        parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    port = parts.port or (443 if parts.scheme == "https" else 80)
    found: list[bool] = []

    def connect() -> None:
        try:
            socket.create_connection((parts.hostname or "", port), seconds).close()
        except (OSError, UnicodeError):
            return
        found.append(True)

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(seconds)
    return bool(found)


def hub() -> str:
    """The address of the Hub, which HF_ENDPOINT may name."""
    return os.environ.get("HF_ENDPOINT") or "https://huggingface.co"


def hub_forbidden() -> bool:
    """Whether HF_HUB_OFFLINE or HF_DATASETS_OFFLINE forbids the network."""
    return any(
        os.environ.get(name, "").lower() in ("1", "true", "yes", "on")
        for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")
    )

"""What the server may be told, and what it refuses to start with."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from llm_core.contract import BadInput


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """Where to listen and how much to take. Raises `BadInput` naming the option that cannot be."""

    host: str = "127.0.0.1"
    """Address to listen on; another than loopback needs an API key."""
    port: int | None = None
    """Port; 0 takes a free one. None: 8000, or a free one where that is taken."""
    api_key: str = ""
    """What clients must send as `Authorization: Bearer KEY`; empty: nothing."""
    name: str = "groundup"
    """The model's name in the API."""
    max_rows: int = 32
    """Answers that are drawn at once, in one batch."""
    max_queue: int = 128
    """Answers that may wait beyond those; more get status 429."""
    max_tokens: int = 0
    """Most tokens of one answer that a request may ask for; 0: what the model's context leaves."""
    max_body: int = 1 << 20
    """Most bytes of a request's body."""
    request_seconds: float = 300.0
    """Longest time for an answer, waiting included; what is not drawn by then is left out."""
    receive_seconds: float = 10.0
    """Longest time that a connection may take to send its request's header, and again for the body."""
    watch_seconds: float = 5.0
    """How often the registry is asked whether the champion changed; 0: only SIGHUP asks."""

    def __post_init__(self) -> None:
        if not self.loopback and not self.api_key:
            raise BadInput(
                f"--host {self.host}: others could reach it; name a key with --api-key or GROUNDUP_API_KEY, or stay on"
                " 127.0.0.1"
            )
        if not self.api_key.isprintable() or not self.api_key.isascii() or " " in self.api_key:
            raise BadInput("--api-key: only printable ASCII characters without spaces can be sent in a header")
        for option, least in (("port", 0), ("max_rows", 1), ("max_queue", 0), ("max_tokens", 0), ("max_body", 1024)):
            if (getattr(self, option) or 0) < least:
                raise BadInput(f"--{option.replace('_', '-')}: {getattr(self, option)} must be at least {least}")
        for option in ("request_seconds", "receive_seconds"):
            if not getattr(self, option) > 0:
                raise BadInput(f"--{option.replace('_', '-')}: {getattr(self, option)} must be above 0")

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        return is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine's own, without asking a resolver."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False

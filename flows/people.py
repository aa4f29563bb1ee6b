"""`groundup chat`: the voting page on this machine, or with a password on others."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from deployments import servers


def chat(
    project: Path,
    models: Sequence[str],
    *,
    host: str,
    port: int,
    password: str,
    temperature: float,
    top_p: float,
    max_tokens: int,
    tell: Callable[[str], None],
) -> None:
    """Show the voting page until interrupted. Raises `BadInput` for an address that needs a password."""
    from apps.answering import Draw
    from apps.chat import check_address, serve

    check_address(host, password)
    if host in ("127.0.0.1", "localhost") and port:
        free = servers.free_port(port)
        if free != port:
            print(f"port {port} is taken", file=sys.stderr)
        port = free
    _servers(project)
    tell(f"voting page: http://{host}:{port}  (Ctrl+C ends it)")
    serve(project, models, Draw(temperature, top_p, max_tokens), host, port, password)


def _servers(project: Path) -> None:
    """The project's servers; the page works without them and keeps the votes, so a failure is only told."""
    try:
        servers.ensure(project)
    except servers.ServerFailed as error:
        print(f"{error}; votes are kept on this machine until it answers", file=sys.stderr)

"""`groundup serve`: finds the model and hands over to the server."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from apps.serving.options import ServeOptions


def serve(project: Path | None, model: str, options: ServeOptions, tell: Callable[[str], None]) -> None:
    """Serve a model's directory (`project` None), or what an alias of the project's registry points at.

    Returns when the process is told to end; `tell` gets one line when requests are taken.
    """
    from apps import server
    from apps.serving.served import Champion, Folder

    if project is None:
        server.serve(Folder(Path(model)), options, tell)
        return
    from flows.running import tracking_server

    server.serve(Champion(tracking_server(project), model, project / ".groundup" / "registry"), options, tell)

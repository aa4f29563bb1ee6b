"""A tracker that is slow, or that goes away and comes back in the middle of a run: the run ends, and nothing is lost.

A tracker that is down from the beginning, and one that never answers: tests/flows/test_whole_job.py.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tasks import tracking
from tasks.workspace import Workspace


class Proxy:
    """Stands before a server; hands on what clients say, `delay` seconds later, and is away for a while if told so.

    After `cut_at` pieces of what clients said, all connections break, and the next `away` attempts are refused.
    """

    def __init__(self, address: tuple[str, int], delay: float = 0.0, cut_at: int = 0, away: int = 0) -> None:
        self.address, self.delay, self.cut_at, self.away = address, delay, cut_at, away
        self.pieces, self.refused, self.broken = 0, 0, False
        self.open: list[socket.socket] = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        """Where clients find it."""
        return f"http://127.0.0.1:{self.listener.getsockname()[1]}"

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            if self.broken and self.refused < self.away:
                self.refused += 1
                client.close()
                continue
            server = socket.create_connection(self.address)
            self.open += [client, server]
            threading.Thread(target=self._hand_on, args=(client, server, True), daemon=True).start()
            threading.Thread(target=self._hand_on, args=(server, client, False), daemon=True).start()

    def _hand_on(self, source: socket.socket, target: socket.socket, asks: bool) -> None:
        try:
            while data := source.recv(65536):
                if asks:
                    time.sleep(self.delay)
                    self.pieces += 1
                    if self.cut_at and self.pieces == self.cut_at:
                        self.broken = True
                        self._break()
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            return

    def _break(self) -> None:
        for one in self.open:
            try:
                one.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue

    def close(self) -> None:
        """Let nobody in any longer."""
        self.listener.close()
        self._break()


@pytest.fixture
def before(workspace: Workspace) -> Iterator[Callable[..., Proxy]]:
    """A proxy before the session's MLflow server."""
    made: list[Proxy] = []
    uri = urlsplit(tracking.tracking_uri(workspace.root) or "")

    def make(**how: Any) -> Proxy:
        made.append(Proxy((str(uri.hostname), int(uri.port or 0)), **how))
        return made[-1]

    yield make
    for proxy in made:
        proxy.close()


def told(space: Workspace) -> dict[int, float]:
    """The training's losses, as its process wrote them down."""
    (file,) = (space.root / ".groundup" / "scratch").glob("pretrain-*/record/metrics.jsonl")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    return {line["step"]: line["values"]["train/loss"] for line in lines if "train/loss" in line["values"]}


def arrived(space: Workspace, uri: str) -> dict[int, float]:
    """The same from MLflow, after `groundup sync`."""
    tracking.sync(space.project, uri)
    (file,) = (space.root / ".groundup" / "scratch").glob("pretrain-*/record/run.json")
    client, mark = tracking.client(uri), json.loads(file.read_text())["tags"]["fingerprint"]
    found = client.search_runs(
        [tracking.experiment_id(client, "pretrain")],
        f"tags.fingerprint = '{mark}'",
        order_by=["attributes.start_time DESC"],
    )
    run = found[0].info.run_id
    assert found[0].info.status == "FINISHED"
    return {point.step: point.value for point in client.get_metric_history(run, "train/loss")}


@pytest.mark.parametrize("how", [{"delay": 0.2}, {"cut_at": 6, "away": 4}], ids=["slow", "restarted"])
def test_a_tracker_in_trouble(
    part: Callable[..., Workspace], stages: Any, right: Callable[..., None], before: Any, workspace: Workspace, how: Any
) -> None:
    space, proxy = part("pretrain"), before(**how)
    code, said = stages(space, "pretrain", tracker=proxy.url)
    assert code == 0, said
    assert proxy.pieces >= how.get("cut_at", 1), "the tracker was asked"
    right(space, "pretrain")
    uri = tracking.tracking_uri(workspace.root)
    assert uri
    assert arrived(space, uri) == told(space)
    assert not list(Path(space.project / ".groundup").glob("outbox/*"))

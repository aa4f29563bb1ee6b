"""Who is told when a run ends: lines of a log file, and a webhook, as deployments/notices.yaml says.

The keeper asks Prefect's API, so every way of ending is told, also that of a run whose processes were all killed.
"""

from __future__ import annotations

import http.client
import json
import os
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from llm_core import artifacts
from llm_core.contract import BadInput
from tasks.secrets import shown

LOOK_EVERY_S = 3.0
MOST = 200
"""Runs that are asked for at once, and that are remembered as told."""


class Options(BaseModel):
    """What deployments/notices.yaml may say."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    states: tuple[Literal["FAILED", "CRASHED", "CANCELLED", "COMPLETED"], ...] = ("FAILED", "CRASHED")
    log: Path | None = Path(".run/notices.log")
    webhook: str | None = None


def read_options(project: Path) -> Options:
    """The options of a project. Raises `BadInput` naming the field."""
    path = project / "deployments" / "notices.yaml"
    content = yaml.safe_load(path.read_text()) if path.is_file() else None
    try:
        return Options.model_validate(content or {})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"]))
        raise BadInput(f"{path}: {field} = {first['input']!r}: {first['msg']}") from None


class Notices:
    """Tells each ended run once, also over restarts: what was told is kept in .run/notices.state."""

    def __init__(self, project: Path) -> None:
        self.project, self.options = project, read_options(project)
        self.kept = project / ".run" / "notices.state"
        self.next_look = 0.0
        if self.kept.is_file():
            self.state: dict[str, Any] = json.loads(self.kept.read_text())
        else:
            self.state = {"since": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "told": []}
            self._keep()

    def look(self) -> list[str]:
        """Tell what has ended since the last look; the sentences, and what went wrong with telling them."""
        if time.monotonic() < self.next_look or not self.options.states:
            return []
        self.next_look = time.monotonic() + LOOK_EVERY_S
        try:
            ended = [run for run in self._ended() if _key(run) not in self.state["told"]]
        except OSError:
            return []  # the server is away; what ended meanwhile is told when it is back
        said = []
        for run in ended:
            said += self._tell(run)
            self.state["told"] = [*self.state["told"], _key(run)][-MOST:]
            self._keep()
        return said

    def _ended(self) -> list[dict[str, Any]]:
        """Runs in one of the states that ended after the first look, the oldest first."""
        wanted = {"end_time": {"after_": self.state["since"]}, "state": {"type": {"any_": list(self.options.states)}}}
        body = {"flow_runs": wanted, "sort": "END_TIME_DESC", "limit": MOST}
        found = _post(f"{os.environ['PREFECT_API_URL']}/flow_runs/filter", body)
        return list(reversed(json.loads(found)))

    def _tell(self, run: dict[str, Any]) -> list[str]:
        page = shown(os.environ["PREFECT_API_URL"]).removesuffix("/api")
        notice = {
            "run": run["name"],
            "state": run["state"]["name"],
            "message": run["state"].get("message") or "",
            "ended": run["end_time"],
            "url": f"{page}/runs/flow-run/{run['id']}",
        }
        text = f"{notice['run']}: {notice['state']}: {' '.join(notice['message'].split())[:300]} {notice['url']}"
        if self.options.log:
            path = self.project / self.options.log
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "a") as log:
                log.write(f"{notice['ended']} {text}\n")
        if self.options.webhook:
            try:
                _post(os.path.expandvars(self.options.webhook), notice)
            except (OSError, ValueError, http.client.HTTPException) as error:
                why = str(error) if isinstance(error, OSError) else "its address is no URL"  # which may hold a secret
                return [text, f"the webhook of deployments/notices.yaml did not take it: {why}"]
        return [text]

    def _keep(self) -> None:
        self.kept.parent.mkdir(exist_ok=True)
        artifacts.write_atomic(self.kept, artifacts.dump_json(self.state))


def _key(run: dict[str, Any]) -> str:
    """A run that is tried again may end again, and is told again."""
    return f"{run['id']} {run['run_count']}"


def _post(url: str, body: dict[str, Any]) -> bytes:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as response:
        answer: bytes = response.read()
    return answer

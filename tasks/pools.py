"""A stage as a run of its own in one of Prefect's work pools, while the build waits for it.

The deployment `stage/POOL-...` of the flow in `flows/stage.py` is made when it is needed: it says in which folder the
project is, so that any worker of the pool which sees that folder can take the run.
"""

from __future__ import annotations

import hashlib
import os
import time
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import WorkerFilter, WorkerFilterStatus
from prefect.client.schemas.objects import StateType, WorkPool
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelled, Cancelling, Crashed

from llm_core.settings.placement import PlaceSettings
from tasks import children
from tasks.children import Order

ASK_S = 1.0
SAVE_S = 20.0
"""How long a run that is told to stop may take to save before Prefect is asked to cancel it."""
GONE = "the build that waited for it has ended"


def check(verb: str, place: PlaceSettings) -> WorkPool:
    """The pool of a stage. Raises `BadInput` if Prefect does not have it, or it knows no such job variable."""
    with get_client(sync_client=True) as client:
        try:
            pool: WorkPool = client.read_work_pool(str(place.pool))
        except ObjectNotFound:
            names = ", ".join(sorted(each.name for each in client.read_work_pools())) or "none"
            how = f"prefect work-pool create {place.pool} --type process"
            raise children.refuse(
                verb, "pool", f"Prefect has no work pool {place.pool!r} (there are: {names}); make it with {how}"
            ) from None
    known = pool.base_job_template.get("variables", {}).get("properties", {})
    if unknown := sorted(place.job.keys() - known.keys()):
        raise children.refuse(
            verb, "job", f"the pool {place.pool} has no job variable {unknown[0]!r}, only {', '.join(sorted(known))}"
        )
    return pool


def deployment(client: SyncPrefectClient, order: Order, pool: WorkPool) -> UUID:
    """The deployment by which stages of this project run in that pool; made, or brought up to date."""
    project = str(order.space.project)
    found: UUID = client.create_deployment(
        flow_id=client.create_flow_from_name("stage"),
        name=f"{pool.name}-{hashlib.sha256(project.encode()).hexdigest()[:8]}",
        description=f"Stages of {project} that params.yaml places in this pool.",
        entrypoint="flows/stage.py:stage",
        work_pool_name=pool.name,
        pull_steps=[{"deployments.pull.project_folder": {"directory": project}}],
        enforce_parameter_schema=False,
        tags=["placed"],
    )
    return found


class PoolRun:
    """A run of the flow `stage` in a pool."""

    def __init__(self, order: Order, place: PlaceSettings, wait_s: float) -> None:
        self.order, self.wait_s, self.words = order, wait_s, ""
        self.pool = check(order.verb, place)
        self.build, self.there = children.Sign(order, "build"), children.Sign(order, "stage")
        self.build.give()
        self.there.path.unlink(missing_ok=True)
        with get_client(sync_client=True) as client:
            made = deployment(client, order, self.pool)
        asked = {
            "workspace": str(order.space.root),
            "verb": order.verb,
            "force": order.force,
            "refresh": order.refresh,
            "build": os.environ.get("GROUNDUP_BUILD", ""),
            "pool": self.pool.name,
        }
        name = f"{order.verb} of {order.space.name}"
        self.run: UUID = run_deployment(
            made, parameters=asked, timeout=0, flow_run_name=name, job_variables=place.job or None
        ).id
        children.note(order, f"waits for a worker of the pool {self.pool.name}")
        self._next, self._ended = 0.0, False
        self._code: int | None = None
        self._worker_seen = self._heard = time.monotonic()

    def poll(self) -> int | None:
        """0 or 1 once the run has ended. Raises `BadInput` if no worker takes it."""
        self.build.give()
        if self._code is None and time.monotonic() >= self._next:
            self._next = time.monotonic() + ASK_S
            self._ask()
        return self._code

    def _ask(self) -> None:
        try:
            self._see()
            self._heard = time.monotonic()
        except httpx.TransportError:  # a server that is started again, or a network that is gone for a while
            if time.monotonic() - self._heard > children.LOST_S:
                raise

    def _see(self) -> None:
        with get_client(sync_client=True) as client:
            state = client.read_flow_run(self.run).state
            if state is None or state.type in (StateType.SCHEDULED, StateType.PENDING):
                self._wait_for_worker(client)
            elif state.is_final():
                self._ended, self._code = True, 0 if state.is_completed() else 1
                self.words = f"its run in the pool {self.pool.name} is {state.name}: {state.message or 'no word'}"
            elif self.there.silent_for() > children.LOST_S:
                self.words = f"its run in the pool {self.pool.name} gave no sign of life for {children.LOST_S:.0f} s"
                self.build.stop()  # in case it lives, and only cannot be seen from here
                client.set_flow_run_state(self.run, Crashed(message=self.words), force=True)
                self._ended, self._code = True, 1

    def _wait_for_worker(self, client: SyncPrefectClient) -> None:
        """Give up if the pool has been without a worker for long; one whose workers are busy is waited for."""
        if self.pool.is_push_pool or self.pool.is_managed_pool:
            return
        online = WorkerFilter(status=WorkerFilterStatus(any_=["ONLINE"]))
        paused = client.read_work_pool(self.pool.name).is_paused
        if not paused and client.read_workers_for_work_pool(self.pool.name, worker_filter=online):
            self._worker_seen = time.monotonic()
        elif time.monotonic() - self._worker_seen > self.wait_s:
            if paused:
                how = f"prefect work-pool resume {self.pool.name}"
                raise children.refuse(self.order.verb, "pool", f"the pool {self.pool.name!r} is paused; {how}")
            why = f"no worker of the pool {self.pool.name!r} is online, and none came within {self.wait_s:g} s"
            raise children.refuse(
                self.order.verb, "pool", f"{why}; start one there with prefect worker start --pool {self.pool.name}"
            )

    def end(self) -> None:
        """Let the run save and end, if it has not ended: by its sign, then by Prefect's Cancel."""
        if self._ended:
            return
        self._ended = True
        self.build.stop()
        with get_client(sync_client=True) as client:
            began = client.read_flow_run(self.run).state
            if began is None or began.type in (StateType.SCHEDULED, StateType.PENDING):
                client.set_flow_run_state(self.run, Cancelled(message=GONE), force=True)
                return
            deadline = time.monotonic() + SAVE_S
            while time.monotonic() < deadline:
                state = client.read_flow_run(self.run).state
                if state is not None and state.is_final():
                    return
                time.sleep(0.3)
            client.set_flow_run_state(self.run, Cancelling(message=GONE))

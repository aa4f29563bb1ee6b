"""What Prefect does by itself: new data and new votes start runs, and a run without heartbeat is marked as crashed."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate, WorkPoolCreate
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState, RunDeployment
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound

from tasks import gpus
from tasks.exchanges import VOTE_GIVEN
from tasks.summary import DATA_CHANGED

SILENCE = timedelta(seconds=90)
"""A run beats every 30 seconds; three beats that do not come mean that its process is gone."""
ENOUGH_VOTES = 20
"""New votes that start a training."""
ENDED = {f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "Cancelled", "Crashed")}


def ensure_pool(name: str) -> None:
    """A work pool of local processes of that name."""
    with get_client(sync_client=True) as client:
        try:
            client.create_work_pool(WorkPoolCreate(name=name, type="process"))
        except ObjectAlreadyExists:
            return


def ensure_gpu_limit() -> None:
    """The limit on GPUs that runs hold together: this machine's cards, unless somebody has set another."""
    with get_client(sync_client=True) as client:
        try:
            client.read_global_concurrency_limit_by_name(gpus.LIMIT)
        except ObjectNotFound:
            client.create_global_concurrency_limit(
                GlobalConcurrencyLimitCreate(name=gpus.LIMIT, limit=max(1, len(gpus.cards())))
            )


def ensure_automations() -> None:
    """The automations, each once. One that is as it should be stays, with the events that it has counted so far."""
    with get_client(sync_client=True) as client:
        wanted = [_build_on_new_data(_deployment_id(client, "build/build")), _lost_runs()]
        wanted.append(_feedback_on_votes(_deployment_id(client, "feedback/feedback")))
        for automation in wanted:
            there = client.read_automations_by_name(automation.name)
            if len(there) == 1 and _does(there[0]) == _does(automation):
                continue
            for old in there:
                client.delete_automation(old.id)
            client.create_automation(automation)


def _does(automation: AutomationCore) -> dict[str, Any]:
    """When an automation acts and how, without the ids that the server gives."""
    return automation.model_dump(include={"enabled", "trigger", "actions"})


def _deployment_id(client: SyncPrefectClient, name: str) -> UUID:
    return client.read_deployment_by_name(name).id


def _build_on_new_data(deployment: UUID) -> AutomationCore:
    return AutomationCore(
        name="new data starts a build",
        trigger=EventTrigger(expect={DATA_CHANGED}, posture=Posture.Reactive, threshold=1, within=timedelta(0)),
        actions=[RunDeployment(source="selected", deployment_id=deployment, parameters={})],
    )


def _feedback_on_votes(deployment: UUID) -> AutomationCore:
    return AutomationCore(
        name="new votes start feedback",
        trigger=EventTrigger(
            expect={VOTE_GIVEN}, posture=Posture.Reactive, threshold=ENOUGH_VOTES, within=timedelta(days=365)
        ),
        actions=[RunDeployment(source="selected", deployment_id=deployment, parameters={})],
    )


def _lost_runs() -> AutomationCore:
    """Prefect's own remedy for zombies: after a heartbeat another one, or an end, must follow."""
    return AutomationCore(
        name="a run without heartbeat is marked as crashed",
        trigger=EventTrigger(
            after={"prefect.flow-run.heartbeat"},
            expect={"prefect.flow-run.heartbeat", *ENDED},
            match={"prefect.resource.id": "prefect.flow-run.*"},
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=SILENCE,
        ),
        actions=[
            ChangeFlowRunState(state=StateType.CRASHED, message="The run's process stopped giving signs of life.")
        ],
    )

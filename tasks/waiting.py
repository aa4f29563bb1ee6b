"""Why a run waits, shown on its page in Prefect: a state named Waiting with the reason, and a line of its log."""

from __future__ import annotations

from collections.abc import Callable

from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext
from prefect.logging import get_run_logger
from prefect.states import Running, State


def on_page(why: str) -> Callable[[], None]:
    """Say that the run waits; the answer is called when it goes on. Outside a Prefect run nothing happens."""
    if FlowRunContext.get() is None:
        return lambda: None
    get_run_logger().info(why)
    _become(Running(name="Waiting", message=why))
    return lambda: _become(Running())


def _become(state: State[object]) -> None:
    """A page that cannot be brought up to date keeps no run from working."""
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        return
    try:
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(context.flow_run.id, state, force=True)
    except Exception as error:
        get_run_logger().warning("the run's state was not shown: %s", error)

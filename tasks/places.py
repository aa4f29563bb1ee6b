"""Where a stage's child runs: here, in a work pool of Prefect, or as a job of Slurm, as params.yaml places it.

Wherever it is, the same runs there: `dvc repro --single-item STAGE` in the same workspace, on storage that all see
under the same path. So DVC's lock, the products and the events file stay in one place, and nothing is copied. The build
waits and shows the stage's events; it holds the workspace's lock all the time.
"""

from __future__ import annotations

from llm_core.pipeline import stage
from llm_core.settings.placement import PlacementSettings, PlaceSettings
from tasks import params
from tasks.children import Child, Here, Order
from tasks.workspace import Workspace


def settings(space: Workspace) -> PlacementSettings:
    """The section `placement`, checked. Raises `BadInput`."""
    found = params.section_config(params.PLACEMENT, space.params, "params.yaml")
    assert isinstance(found, PlacementSettings)
    return found


def place_of(space: Workspace, verb: str) -> PlaceSettings | None:
    """Where a stage runs; None: here."""
    found: PlaceSettings | None = getattr(settings(space), stage(verb).verb)
    return found


def check(space: Workspace, verbs: frozenset[str]) -> None:
    """Raise `BadInput` for a place that does not exist, before anything has started."""
    placed = settings(space)
    for verb in sorted(verbs):
        place: PlaceSettings | None = getattr(placed, verb)
        if place is not None and place.pool is not None:
            from tasks import pools

            pools.check(verb, place)
        elif place is not None:
            from tasks import slurm

            slurm.check(space, verb, place)


def start(order: Order) -> Child:
    """Begin a stage where it belongs. Raises `BadInput` if that place does not exist."""
    place = place_of(order.space, order.verb)
    if place is None:
        return Here(order)
    if place.pool is not None:
        from tasks import pools

        return pools.PoolRun(order, place, settings(order.space).wait_seconds)
    from tasks import slurm

    return slurm.Job(order, place)

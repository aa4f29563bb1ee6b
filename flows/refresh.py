"""Ask the sources again: which pages are new, changed or gone. Nothing else runs; a build follows if data changed."""

from __future__ import annotations

from prefect import flow

from tasks import summary
from tasks.form import HERE, Folder
from tasks.session import open_session
from tasks.stages import acquire


@flow(name="refresh", flow_run_name=summary.run_name, validate_parameters=False)
def refresh(workspace: Folder = HERE) -> summary.Changes:
    """Bring the raw data of `workspace` up to date with its sources; unchanged data keeps every later stage fresh."""
    with open_session(workspace, ("acquire",), refresh=True) as run:
        acquire(run)
        return summary.changes(run)

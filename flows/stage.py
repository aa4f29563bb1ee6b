"""One stage of a build on the machine whose worker took it: what a build starts for a stage placed in a pool."""

from __future__ import annotations

from pathlib import Path

from prefect import flow

from tasks.placed import carry_out


@flow(name="stage", validate_parameters=False)
def stage(
    workspace: Path, verb: str, force: bool = False, refresh: bool = False, build: str = "", pool: str = ""
) -> None:
    """Bring one stage of a workspace up to date here; the build that started this run waits for it and shows it."""
    carry_out(workspace, verb, force=force, refresh=refresh, build=build, pool=pool)

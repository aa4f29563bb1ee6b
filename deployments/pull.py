"""Where a run that Prefect starts finds its project: the first step of every deployment."""

from __future__ import annotations

import os
from pathlib import Path
from uuid import UUID

from llm_core.contract import BadInput


def project_folder(directory: str) -> dict[str, str]:
    """Change into the project's folder and return it, as Prefect asks of such a step.

    Raises `BadInput` where no project is, and says so in the log of the run: Prefect itself tells the page only that a
    process ended.
    """
    if not (Path(directory) / "flows").is_dir():
        told = (
            f"this deployment looks for its project in {directory}, where none is; "
            "if it was moved, groundup up in its new place deploys it again"
        )
        _tell(told)
        raise BadInput(told)
    os.chdir(directory)
    return {"directory": directory}


def _tell(sentence: str) -> None:
    from prefect.logging.loggers import flow_run_logger

    if run := os.environ.get("PREFECT__FLOW_RUN_ID"):
        flow_run_logger(flow_run_id=UUID(run)).error(sentence)

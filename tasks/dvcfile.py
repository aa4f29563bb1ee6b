"""dvc.yaml, made from the table. `python -m tasks.dvcfile` writes it; with --check it only compares (exit code 1)."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml

from llm_core.pipeline import PIPELINE, Stage, product_path
from tasks.closure import code_files
from tasks.plots import WITH_LOSSES

HEADER = """\
# Made from llm_core/pipeline.py and the imports of each stage: do not edit.
# After a change of either: python -m tasks.dvcfile
"""


def render(root: Path) -> str:
    """The text of dvc.yaml for the code under `root`."""
    stages = {row.verb: _entry(row, root) for row in PIPELINE}
    charts = [
        {f"{verb} loss": {"x": "step", "y": {losses_path(verb): ["train/loss", "validation/loss"]}}}
        for verb in WITH_LOSSES
    ]
    text: str = yaml.safe_dump({"stages": stages, "plots": charts}, sort_keys=False)
    return HEADER + text


def losses_path(verb: str) -> str:
    """Where a stage that trains leaves its loss curves."""
    return f"reports/curves/{verb}.json"


def _entry(row: Stage, root: Path) -> dict[str, Any]:
    deps = [product_path(need) for need in row.needs]
    deps += [*row.files.values(), *(file.as_posix() for file in code_files(row, root))]
    return {
        # exec: dash would stay in between otherwise, and the stage would not hear that who started it has ended
        "cmd": f"exec python -m tasks.run {row.verb}",
        "desc": row.what,
        **({"deps": deps} if deps else {}),
        "params": [row.verb],
        "outs": [product_path(row.makes), *([losses_path(row.verb)] if row.verb in WITH_LOSSES else [])],
        "metrics": [f"reports/{row.verb}.json"],
    }


def main(arguments: list[str]) -> int:
    """Write or check dvc.yaml in the current directory."""
    root = Path.cwd()
    path = root / "dvc.yaml"
    text = render(root)
    if "--check" in arguments:
        if path.is_file() and path.read_text() == text:
            return 0
        print("dvc.yaml does not match the stage table; mend it with: python -m tasks.dvcfile", file=sys.stderr)
        return 1
    path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

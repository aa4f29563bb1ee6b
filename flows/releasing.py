"""What the commands `groundup export` and `groundup promote` do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

from flows import running
from llm_core.contract import BadInput
from tasks.workspace import Workspace


def export(project: Path, model: str, out: Path, form: str) -> str:
    """Export a registry's alias or a model's directory; what was written, in words."""
    from llm_core.release.export import Format
    from llm_core.release.export import export as write

    forms = get_args(Format)
    if form not in forms:
        raise BadInput(f"--format: {form!r} is none of {', '.join(forms)}")
    folder = _folder(project, model)
    made = write(folder, out, "gguf-ready" if form == "gguf-ready" else "hf")
    return "\n".join([f"{out}: {form}, from {model}; README.md says how to load it", *made.notes])


def _folder(project: Path, model: str) -> Path:
    if Path(model).is_dir():
        return Path(model)
    from tasks.registry import Registry

    return Registry(running.tracking_server(project)).model_folder(model, project / ".groundup" / "registry")


def promote(project: Path, *, as_json: bool) -> str:
    """Judge the main workspace's newest scores; the verdict in words, or all of it as JSON."""
    from tasks.promote import judge_now

    space = Workspace.at(project)
    space.configs()
    promotion = judge_now(space, running.tracking_server(project))
    if as_json:
        return json.dumps(space.read_report("promote"), indent=2)
    lines = [f"gate: {promotion.reason}", f"champion: {promotion.champion or 'none'}"]
    for model, verdict in (space.read_report("promote") or {}).get("verdicts", {}).items():
        lines += [f"  {model} {'+' if check['passed'] else '-'} {check['sentence']}" for check in verdict["checks"]]
    return "\n".join(lines)

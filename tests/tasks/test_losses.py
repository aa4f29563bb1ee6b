"""Loss curves as DVC's own command reads them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from llm_core import artifacts
from tasks import dvcfile, plots

CURVES = {"train/loss": [(1, 4.0), (2, 3.0), (3, 2.5)], "validation/loss": [(2, 3.5)], "train/mfu": [(1, 0.1)]}


def test_each_row_has_both_losses_and_the_measured_one_holds_until_the_next() -> None:
    rows = plots.loss_rows(CURVES)
    assert [row["validation/loss"] for row in rows] == [None, 3.5, 3.5]
    assert [row["train/loss"] for row in rows] == [4.0, 3.0, 2.5]
    assert plots.loss_rows({}) == []


def test_dvc_plots_draws_them(root: Path, tmp_path: Path) -> None:
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc" / "config").write_text("[core]\n    no_scm = true\n    analytics = false\n")
    (tmp_path / "dvc.yaml").write_text(dvcfile.render(root))
    for verb in plots.WITH_LOSSES:
        path = tmp_path / dvcfile.losses_path(verb)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(artifacts.dump_json(plots.loss_rows(CURVES)))
    command = [sys.executable, "-m", "dvc", "plots", "show", "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    drawn = json.loads(done.stdout)
    assert not drawn.get("errors")
    for verb in plots.WITH_LOSSES:
        (chart,) = drawn["data"][f"{verb} loss"]
        points = chart["content"]["data"]["values"]
        assert {point["field"] for point in points} == {"train/loss", "validation/loss"}
        assert len(points) == 6

"""The GPU benchmark's own logic at a size for a CPU, with a stand-in for the peer's script. No timing is tested."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

PEER = """
import time
from pathlib import Path
import numpy as np
for split in ("val", "train"):
    file = next(Path.cwd().glob(f"data/fineweb10B/fineweb_{split}_*.bin"))
    header = np.fromfile(file, dtype=np.int32, count=256)
    assert (header[0], header[1]) == (20240520, 1)
    assert file.stat().st_size == 1024 + 2 * header[2]
print("logs/x.txt")
print("step:0/3250 val_loss:10.8 train_time:0.000s step_avg:nanms")
for step in range(3250):
    time.sleep(0.01)
    print(f"step:{step + 1}/3250 train_time:{step / 100:.3f}s step_avg:10.00ms")
"""
ABSENT = ("pydantic", "prefect", "mlflow", "dvc", "pyarrow", "safetensors", "transformers", "tokenizers", "tiktoken",
          "datasets", "psutil", "yaml", "xxhash", "rich", "typer")  # fmt: skip


def test_it_measures_both_with_nothing_but_torch_and_numpy(root: Path, tmp_path: Path) -> None:
    script = tmp_path / "modded" / "records" / "track_3_optimization" / "train_gpt_simple.py"
    script.parent.mkdir(parents=True)
    script.write_text(PEER)
    blocked = tmp_path / "blocked"
    blocked.mkdir()
    (blocked / "sitecustomize.py").write_text(
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.partition('.')[0] in {ABSENT!r}:\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Absent())\n"
    )
    command = [sys.executable, "-m", "benchmarks.train_gpu", "--device", "cpu", "--tiny", "--models", "speedrun"]
    command += ["--modded", str(tmp_path / "modded"), "--peer-steps", "8", "--results", str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(blocked), "OMP_WAIT_POLICY": "PASSIVE"}
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "train_gpu_tiny.json").read_text())
    ours, peer = found["median"]["speedrun"], found["median"]["modded-nanogpt track 3"]
    assert ours["last_loss"] < ours["first_loss"]
    assert 0 < ours["mfu_of_measured_peak"] < 1
    assert ours["batch_making_share"] > 0
    assert peer["tokens_per_second"] < 512 / 0.01
    assert found["ratio"]["speedrun"] > 0
    assert len(found["runs"]["speedrun"]) == 2
    assert {"device", "torch", "commit", "measured_peak_tflops"} <= set(found["where"])

"""The loop: exact resume after a kill or a stop, accumulation, best weights, patience, and what is not finite."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from llm_core.contract import Event, Metric, Progress, Resumed, Stop
from llm_core.model.config import ModelConfig
from llm_core.model.transformer import Transformer
from llm_core.train.batches import PageBatches, TokenBatch, Windows, next_token_loss
from llm_core.train.loop import Fit, LoopOptions, Loss, fit
from llm_core.train.optim import OptimizerOptions, make_optimizer
from llm_core.train.schedule import cosine

STEPS = 24
CHILD = """
import sys
sys.path.insert(0, sys.argv[1])
from test_loop import train
from pathlib import Path
train(Path(sys.argv[2]), weights=Path(sys.argv[3]), say=True)
"""


def train(
    scratch: Path,
    *,
    weights: Path | None = None,
    say: bool = False,
    stop_at: int | None = None,
    accumulate: int = 1,
    rows: int = 4,
    **options: object,
) -> tuple[Fit, list[Event], Transformer]:
    """A tiny run with dropout (so that random state matters) and Muon; the same weights however often it is cut."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = Transformer(ModelConfig.preset("seed", vocab_size=64, layers=1, heads=2, width=16, context=16))
    tokens = np.random.default_rng(0).integers(0, 64, 2000)
    events: list[Event] = []

    def emit(event: Event) -> None:
        events.append(event)
        if isinstance(event, Progress):
            if say:
                print(int(event.done), flush=True)
                time.sleep(0.02)
            if event.done == stop_at:
                raise Stop

    settings = {"steps": STEPS, "seed": 7, "evaluate_every": 10, "save_every_seconds": 0.0} | options
    result = fit(
        model,
        batch=PageBatches(Windows(lambda _: tokens, 16, 7), None, 0.0, rows),
        objective=next_token_loss,
        optimizer=make_optimizer(model, OptimizerOptions(name="muon", learning_rate=0.01)),
        schedule=cosine(STEPS),
        options=LoopOptions(accumulate=accumulate, **settings),  # type: ignore[arg-type]
        scratch=scratch,
        emit=emit,
        evaluate=lambda model: {"validation/loss": float(sum(p.abs().sum() for p in model.parameters()))},
    )
    if weights is not None:
        weights.write_bytes(b"".join(p.detach().numpy().tobytes() for _, p in sorted(model.named_parameters())))
    return result, events, model


def test_killed_at_any_step_it_ends_with_the_same_bytes(tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    train(tmp_path / "whole", weights=tmp_path / "whole.bin")
    scratch = tmp_path / "killed"
    scratch.mkdir()
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", CHILD, str(Path(__file__).parent), str(scratch), str(tmp_path / "killed.bin")]
    last, at = 0, random.Random().randint(2, 12)
    for stop_after in (at, at + 8):
        child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        assert child.stdout is not None
        for line in child.stdout:
            assert int(line) > last - 2, "started over instead of resuming"
            last = int(line)
            if last >= stop_after:
                break
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
    assert not (tmp_path / "killed.bin").exists()
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    assert (tmp_path / "killed.bin").read_bytes() == (tmp_path / "whole.bin").read_bytes()


def test_stopped_it_saves_and_resumes(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole, _, expected = train(tmp_path / "a", save_every_seconds=1e9)
    with pytest.raises(Stop):
        train(tmp_path / "b", stop_at=13, save_every_seconds=1e9)
    again, events, model = train(tmp_path / "b", save_every_seconds=1e9)
    assert events[0] == Resumed(13)
    assert [event.done for event in events if isinstance(event, Progress)] == list(range(14, 25))
    assert all(torch.equal(a, b) for a, b in zip(expected.parameters(), model.parameters(), strict=True))
    assert (again.steps, again.tokens, again.best) == (whole.steps, whole.tokens, whole.best)


def test_a_half_written_resume_point_is_never_read(tmp_path: Path) -> None:
    with pytest.raises(Stop):
        train(tmp_path, stop_at=5)
    (tmp_path / ".step-00000006.part").mkdir()
    (tmp_path / ".step-00000006.part" / "tensors-00001.safetensors").write_bytes(b"half")
    _, events, _ = train(tmp_path)
    assert events[0] == Resumed(5)


def test_accumulation_counts_every_token_alike(tmp_path: Path) -> None:
    """Ragged batches cut into parts give the gradient of the whole."""
    torch.manual_seed(0)
    rows = torch.randint(0, 64, (6, 9))
    mask = torch.rand(6, 8) < torch.tensor([0.9, 0.1, 0.5, 0.9, 0.2, 0.4])[:, None]

    def trained(parts: int, folder: Path) -> Transformer:
        folder.mkdir()
        torch.manual_seed(0)
        model = Transformer(ModelConfig.preset("llama", vocab_size=64, layers=1, heads=2, width=16, context=16))

        def batch(number: int) -> TokenBatch:
            cut = slice(number % parts * 6 // parts, (number % parts + 1) * 6 // parts)
            return TokenBatch(rows[cut, :-1], rows[cut, 1:], mask[cut])

        fit(
            model,
            batch=batch,
            objective=next_token_loss,
            optimizer=make_optimizer(model, OptimizerOptions(learning_rate=0.01)),
            schedule=lambda _: 1.0,
            options=LoopOptions(steps=5, accumulate=parts),
            scratch=folder,
            emit=lambda _: None,
        )
        return model

    one, three = trained(1, tmp_path / "1"), trained(3, tmp_path / "3")
    for a, b in zip(one.parameters(), three.parameters(), strict=True):
        assert torch.allclose(a, b, atol=2e-5)


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_side_by_side_gives_the_same_bytes_as_one_by_one(kind: str, tmp_path: Path) -> None:
    tokens = np.random.default_rng(0).integers(0, 64, 2000)

    def trained(lanes: int, folder: Path) -> Transformer:
        folder.mkdir()
        torch.manual_seed(0)
        model = Transformer(ModelConfig.preset("qwen3", vocab_size=64, layers=2, heads=2, width=16, context=16))
        fit(
            model,
            batch=PageBatches(Windows(lambda _: tokens, 16, 7), None, 0.0, rows=7, parts=3),
            objective=next_token_loss,
            optimizer=make_optimizer(model, OptimizerOptions(name=kind, learning_rate=0.01)),  # type: ignore[arg-type]
            schedule=lambda _: 1.0,
            options=LoopOptions(steps=12, accumulate=3, lanes=lanes),
            scratch=folder,
            emit=lambda _: None,
        )
        return model

    torch.set_num_threads(1)
    one, three = trained(1, tmp_path / "1"), trained(3, tmp_path / "3")
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), three.parameters(), strict=True))


def small_fit(folder: Path, values: list[float], **options: object) -> tuple[Fit, Transformer, list[Event]]:
    """A run whose evaluations give `values` in turn."""
    torch.manual_seed(0)
    model = Transformer(ModelConfig.preset("llama", vocab_size=8, layers=1, heads=1, width=8, context=8))
    events: list[Event] = []
    result = fit(
        model,
        batch=lambda n: TokenBatch(torch.full((1, 4), n % 8), torch.full((1, 4), (n + 1) % 8)),
        objective=next_token_loss,
        optimizer=make_optimizer(model, OptimizerOptions(learning_rate=0.01)),
        schedule=lambda _: 1.0,
        options=LoopOptions(steps=10, evaluate_every=2, **options),  # type: ignore[arg-type]
        scratch=folder,
        emit=events.append,
        evaluate=lambda _: {"validation/loss": values.pop(0)},
    )
    return result, model, events


def test_the_best_weights_are_kept_and_patience_ends(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    kept, model, _ = small_fit(tmp_path / "a", [3.0, 2.0, 2.5, 2.6], keep_best_by="validation/loss", patience=2)
    assert (kept.steps, kept.best["step"], kept.best["validation/loss"]) == (8, 4.0, 2.0)
    _, shorter, _ = small_fit(tmp_path / "b", [3.0, 2.0, 1.0, 1.1, 1.2, 1.3])
    assert not torch.equal(model.head_weight, shorter.head_weight)


def test_curves_and_progress_are_told(tmp_path: Path) -> None:
    _, _, events = small_fit(tmp_path, [3.0, 2.0, 2.5, 2.6, 2.7])
    curves = [event for event in events if isinstance(event, Metric) and "train/loss" in event.values]
    assert [event.step for event in curves] == list(range(1, 11))
    assert set(curves[0].values) == {
        "train/loss", "train/learning_rate", "train/gradient_norm", "train/tokens_per_second", "train/memory_gb"
    }  # fmt: skip
    assert [e.values["validation/loss"] for e in events if isinstance(e, Metric) and "validation/loss" in e.values] == [
        3.0, 2.0, 2.5, 2.6, 2.7
    ]  # fmt: skip
    progress = [event for event in events if isinstance(event, Progress)]
    assert [event.done for event in progress] == list(range(1, 11))
    assert {"loss", "tokens/s", "seconds left"} <= set(progress[0].figures)
    json.dumps([dict(event.figures) for event in progress])


def test_steps_that_are_not_finite_are_left_out_and_end_the_run_if_they_stay(tmp_path: Path) -> None:
    def run(bad: range, folder: Path) -> tuple[Fit, Transformer]:
        folder.mkdir()
        torch.manual_seed(0)
        model = Transformer(ModelConfig.preset("llama", vocab_size=8, layers=1, heads=1, width=8, context=8))

        def objective(model: Transformer, number: int) -> Loss:
            loss = next_token_loss(
                model, TokenBatch(torch.ones(1, 4, dtype=torch.long), torch.ones(1, 4, dtype=torch.long))
            )
            return Loss(loss.total * (float("nan") if number in bad else 1.0), loss.count)

        result = fit(
            model,
            batch=lambda n: n,
            objective=objective,
            optimizer=make_optimizer(model, OptimizerOptions(learning_rate=0.01)),
            schedule=lambda _: 1.0,
            options=LoopOptions(steps=20),
            scratch=folder,
            emit=lambda _: None,
        )
        return result, model

    result, model = run(range(3, 6), tmp_path / "some")
    assert result.skipped == 3
    assert all(torch.isfinite(p).all() for p in model.parameters())
    with pytest.raises(FloatingPointError, match="lower the learning rate"):
        run(range(3, 20), tmp_path / "most")

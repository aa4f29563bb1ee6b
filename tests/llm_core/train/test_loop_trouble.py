"""What the loop does when something is wrong or different: spikes, memory, other settings, formats, fewer looks."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from llm_core.contract import BadInput, Event, Metric, Note, Stop
from llm_core.model.config import ModelConfig
from llm_core.model.transformer import Transformer
from llm_core.train.batches import PageBatches, Windows, next_token_loss
from llm_core.train.loop import Fit, LoopOptions, Loss, fit
from llm_core.train.machine import Precision
from llm_core.train.optim import OptimizerOptions, make_optimizer


class Line(nn.Module):
    """One matrix, trained towards the identity."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4, 4))


def distance(model: Line, batch: Tensor) -> Loss:
    return Loss((batch @ model.weight - batch).square().sum(), len(batch))


def fit_line(
    scratch: Path,
    objective: Callable[[Line, Tensor], Loss] = distance,
    *,
    evaluate: Callable[[Line], dict[str, float]] | None = None,
    precision: Precision | None = None,
    **options: object,
) -> tuple[Fit, Line, list[Event]]:
    scratch.mkdir(parents=True, exist_ok=True)
    model, events = Line(), list[Event]()
    settings = {"steps": 20} | options
    result = fit(
        model,
        batch=lambda n: torch.randn(8, 4, generator=torch.Generator().manual_seed(n)),
        objective=objective,
        optimizer=make_optimizer(model, OptimizerOptions(learning_rate=0.01)),
        schedule=lambda _: 1.0,
        options=LoopOptions(**settings),  # type: ignore[arg-type]
        scratch=scratch,
        emit=events.append,
        evaluate=evaluate,
        precision=precision,
    )
    return result, model, events


def spiky(bad: dict[int, float]) -> Callable[[Line, Tensor], Loss]:
    """`distance` whose loss is multiplied in some steps; the batches alone say which step it is."""
    first = {float(torch.randn(8, 4, generator=torch.Generator().manual_seed(n))[0, 0]): by for n, by in bad.items()}

    def objective(model: Line, batch: Tensor) -> Loss:
        loss = distance(model, batch)
        return Loss(loss.total * first.get(float(batch[0, 0]), 1.0), loss.count)

    return objective


def test_a_spike_is_left_out_counted_and_told(tmp_path: Path) -> None:
    objective = spiky({100: 1000.0, 110: float("nan")})
    result, model, events = fit_line(tmp_path / "a", objective, steps=120, spike_sigma=6.0)
    assert (result.skipped, result.skipped_in_a_row) == (2, 0)
    notes = [event.text for event in events if isinstance(event, Note)]
    assert len(notes) == 2
    assert re.match(r"step 101: the loss \d+\.\d+ is a spike; step left out", notes[0])
    assert notes[1] == "step 111: the gradient is not finite; step left out"
    _, other, _ = fit_line(tmp_path / "b", objective, steps=120)
    assert not torch.equal(model.weight, other.weight), "without the guard the spike was taken"


def test_a_guarded_run_resumes_with_its_memory_of_losses(tmp_path: Path) -> None:
    objective = spiky({100: 1000.0})
    _, whole, _ = fit_line(tmp_path / "a", objective, steps=120, spike_sigma=6.0)

    def stop(model: Line, batch: Tensor) -> Loss:
        if float(batch[0, 0]) == float(torch.randn(8, 4, generator=torch.Generator().manual_seed(95))[0, 0]):
            raise KeyboardInterrupt
        return objective(model, batch)

    with pytest.raises(KeyboardInterrupt):
        fit_line(tmp_path / "b", stop, steps=120, spike_sigma=6.0, save_every_seconds=0.0)
    result, model, _ = fit_line(tmp_path / "b", objective, steps=120, spike_sigma=6.0)
    assert result.skipped == 1
    assert torch.equal(model.weight, whole.weight)


def test_looking_less_often_changes_nothing_but_how_a_bad_step_is_left_out(tmp_path: Path) -> None:
    often, a, told = fit_line(tmp_path / "a", steps=21)
    seldom, b, told_later = fit_line(tmp_path / "b", steps=21, look_every=8)
    assert torch.allclose(a.weight, b.weight, atol=1e-7)
    curves = [[e.values["train/loss"] for e in events if isinstance(e, Metric)] for events in (told, told_later)]
    assert curves[0] == pytest.approx(curves[1], abs=1e-6)
    assert often.tokens == seldom.tokens
    result, model, _ = fit_line(tmp_path / "c", spiky({3: float("nan"), 9: float("inf")}), look_every=8)
    assert result.skipped == 2
    assert torch.isfinite(model.weight).all()
    with pytest.raises(FloatingPointError, match="lower the learning rate"):
        fit_line(tmp_path / "d", spiky(dict.fromkeys(range(2, 16), float("nan"))), look_every=4)


def test_the_loss_scale_of_fp16_cancels_out_and_adapts(tmp_path: Path) -> None:
    _, plain, _ = fit_line(tmp_path / "a")
    scaled = Precision("fp16", "cpu")
    _, model, _ = fit_line(tmp_path / "b", precision=scaled)
    assert torch.allclose(plain.weight, model.weight, atol=1e-7)
    assert scaled.scale == 65536.0
    overflowing = Precision("fp16", "cpu")
    result, model, _ = fit_line(tmp_path / "c", spiky({2: float("inf")}), precision=overflowing)
    assert (result.skipped, overflowing.scale) == (1, 32768.0)
    assert torch.isfinite(model.weight).all()


@pytest.mark.parametrize("kind", ["cpu", "python", "cuda"])
def test_out_of_memory_names_the_setting(kind: str, tmp_path: Path) -> None:
    def greedy(model: Line, batch: Tensor) -> Loss:
        if kind == "cpu":
            torch.empty(1 << 50)
        raise MemoryError if kind == "python" else torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(BadInput, match=r"out of memory on cpu in step 0: raise passes \(now 2\)"):
        fit_line(tmp_path, greedy, out_of_memory="raise passes (now 2)")


def test_other_errors_pass_unchanged(tmp_path: Path) -> None:
    def wrong(model: Line, batch: Tensor) -> Loss:
        return Loss((batch @ torch.ones(5, 5)).sum(), 1)

    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        fit_line(tmp_path, wrong)


def test_a_run_of_other_settings_is_refused(tmp_path: Path) -> None:
    def stop(_: Line) -> dict[str, float]:
        raise Stop

    settings = {"optimizer.learning_rate": 0.01}
    with pytest.raises(Stop):
        fit_line(tmp_path, evaluate=stop, evaluate_every=5, settings=settings)
    with pytest.raises(BadInput, match=r"optimizer\.learning_rate \(was 0\.01, is 0\.02\), steps \(was 20, is 30\)"):
        fit_line(tmp_path, steps=30, settings={"optimizer.learning_rate": 0.02})


def test_it_saves_before_it_evaluates_and_keeps_the_best_and_the_last(tmp_path: Path) -> None:
    values = [3.0, 1.0, 2.0]

    def evaluate(_: Line) -> dict[str, float]:
        if not values:
            raise RuntimeError("the evaluation broke")
        return {"validation/loss": values.pop(0)}

    with pytest.raises(RuntimeError, match="the evaluation broke"):
        fit_line(
            tmp_path, evaluate=evaluate, evaluate_every=4, keep_best_by="validation/loss", keep_last=3,
            save_every_seconds=1e9,
        )  # fmt: skip
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "best-00000008", "step-00000008", "step-00000012", "step-00000016"
    ]  # fmt: skip


def test_the_best_weights_need_something_held_out(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="nothing is held out to find 'validation/loss' on"):
        fit_line(tmp_path, evaluate=lambda _: {}, keep_best_by="validation/loss")


def test_figures_of_speed_come_with_the_others(tmp_path: Path) -> None:
    def counted(model: Line, batch: Tensor) -> Loss:
        loss = distance(model, batch)
        return Loss(loss.total, loss.count, tokens=1000)

    _, _, events = fit_line(tmp_path, counted, flops_per_token=500)
    last = [event.values for event in events if isinstance(event, Metric)][-1]
    assert set(last) == {
        f"train/{name}" for name in ("loss", "learning_rate", "gradient_norm", "tokens_per_second", "memory_gb", "mfu")
    }
    assert 0 < last["train/mfu"] < 1
    assert last["train/memory_gb"] > 0.05


def fit_small(folder: Path, lanes: int, **options: object) -> Transformer:
    """A small Transformer after six steps, with dropout where there is one lane."""
    folder.mkdir()
    tokens = np.random.default_rng(0).integers(0, 64, 2000)
    torch.manual_seed(0)
    shape = {"layers": 2, "heads": 2, "width": 16, "context": 16, "dropout": 0.1 if lanes == 1 else 0.0}
    model = Transformer(ModelConfig.preset("seed", vocab_size=64, **shape))
    fit(
        model,
        batch=PageBatches(Windows(lambda _: tokens, 16, 7), None, 0.0, rows=6, parts=2),
        objective=next_token_loss,
        optimizer=make_optimizer(model, OptimizerOptions(learning_rate=0.01)),
        schedule=lambda _: 1.0,
        options=LoopOptions(steps=6, accumulate=2, lanes=lanes, **options),  # type: ignore[arg-type]
        scratch=folder,
        emit=lambda _: None,
    )
    assert all("forward" not in vars(module) for module in model.modules()), "blocks are left as they came"
    return model


@pytest.mark.parametrize("lanes", [1, 2])
def test_recomputed_activations_give_the_same_bytes(lanes: int, tmp_path: Path) -> None:
    kept, again = fit_small(tmp_path / "a", lanes), fit_small(tmp_path / "b", lanes, recompute=True)
    assert all(torch.equal(a, b) for a, b in zip(kept.parameters(), again.parameters(), strict=True))


def test_traced_and_recomputed_blocks_train_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced and differentiated as a compiler would have it; what it makes of that is a GPU's test."""
    real, seen = torch.compile, list[Callable[..., object]]()

    def traced(function: Callable[..., object], **options: object) -> object:
        seen.append(function)
        assert options == {"dynamic": False}
        return real(function, backend="aot_eager")

    monkeypatch.setattr(torch, "compile", traced)
    plain = fit_small(tmp_path / "a", 1)
    both = fit_small(tmp_path / "b", 1, recompute=True, compiled=True)
    assert len(seen) == 1
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(plain.parameters(), both.parameters(), strict=True))

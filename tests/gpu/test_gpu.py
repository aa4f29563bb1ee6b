"""What only a GPU can show. On a machine without one these are skipped, and say so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from llm_core.contract import BadInput, Metric, Progress
from llm_core.model.config import ModelConfig
from llm_core.model.transformer import Transformer
from llm_core.train.batches import PageBatches, TokenBatch, Windows, next_token_loss, next_token_loss_on
from llm_core.train.fused_loss import ROWS, fused_cross_entropy
from llm_core.train.loop import LoopOptions, Loss, fit
from llm_core.train.loss import cross_entropy
from llm_core.train.machine import Machine, Precision
from llm_core.train.optim import OptimizerOptions, make_optimizer
from llm_core.train.peak import peak_flops
from llm_core.train.prefetch import Prefetched

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no NVIDIA GPU on this machine"),
]
GPU = torch.device("cuda")
SHAPE = {"vocab_size": 512, "layers": 2, "heads": 4, "width": 256, "context": 256}


def make(architecture: str = "qwen3") -> Transformer:
    torch.manual_seed(0)
    model = Transformer(ModelConfig.preset(architecture, **SHAPE, dropout=0.0))
    with torch.no_grad():  # residual outputs start at zero: without noise half of the gradients would be zero
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model


def batches(parts: int = 2) -> PageBatches:
    tokens = (np.random.default_rng(0).random(100_000) ** 3 * 512).astype(np.uint16)
    return PageBatches(Windows(lambda _: tokens, 256, 0), None, 0.0, rows=8, parts=parts)


def trained(
    folder: Path, precision: str = "bf16", steps: int = 30, **options: object
) -> tuple[list[float], Transformer]:
    folder.mkdir(parents=True, exist_ok=True)
    model, losses = make().to(GPU), list[float]()

    def emit(event: object) -> None:
        if isinstance(event, Metric):
            losses.append(event.values["train/loss"])

    machine = Machine(GPU, precision)
    fit(
        model,
        batch=batches(),
        objective=next_token_loss_on(machine),
        optimizer=make_optimizer(model, OptimizerOptions(name="muon", learning_rate=0.003)),
        schedule=lambda _: 1.0,
        options=LoopOptions(steps=steps, accumulate=2, metric_every=1, **options),  # type: ignore[arg-type]
        scratch=folder,
        emit=emit,
        precision=machine.make_precision(),
    )
    return losses, model


@pytest.mark.parametrize("architecture", ["seed", "gpt2", "llama", "qwen3", "speedrun"])
def test_loss_and_gradients_equal_the_cpus(architecture: str) -> None:
    found = {}
    for device in ("cpu", "cuda"):
        model = make(architecture).to(device)
        loss = next_token_loss(model, batches()(0))
        loss.total.backward()
        gradients = torch.cat([p.grad.flatten().cpu() for p in model.parameters() if p.grad is not None])
        found[device] = float(loss.total) / loss.count, gradients
    assert found["cuda"][0] == pytest.approx(found["cpu"][0], abs=1e-4)
    difference = (found["cuda"][1] - found["cpu"][1]).norm() / found["cpu"][1].norm()
    assert float(difference) < 1e-3


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_it_learns_in_every_format(precision: str, tmp_path: Path) -> None:
    losses, model = trained(tmp_path, precision)
    assert losses[-1] < losses[0] - 0.3
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_compiled_blocks_train_as_plain_ones(tmp_path: Path) -> None:
    plain, _ = trained(tmp_path / "a", "fp32")
    compiled, _ = trained(tmp_path / "b", "fp32", compiled=True)
    again, _ = trained(tmp_path / "c", "fp32", recompute=True, compiled=True)
    assert compiled == pytest.approx(plain, abs=2e-3)
    assert again == pytest.approx(plain, abs=2e-3)


@pytest.mark.parametrize("softcap", [0.0, 15.0])
def test_the_fused_loss_equals_the_plain_one(softcap: float) -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(2 * ROWS, 64, device=GPU), torch.randn(1000, 64, device=GPU)
    targets = torch.randint(0, 1000, (2 * ROWS,), device=GPU)
    found = []
    for entropy in (fused_cross_entropy, cross_entropy):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        total = entropy(h, w, targets, softcap=softcap)
        total.backward()
        found.append((total.detach(), h.grad, w.grad))
    for ours, plain in zip(*found, strict=True):
        assert float((ours - plain).norm() / plain.norm()) < 2e-3


def test_attention_takes_the_flash_kernel_in_bf16() -> None:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    model = make().to(GPU)
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION]), torch.autocast("cuda", dtype=torch.bfloat16):
        next_token_loss(model, batches()(0)).total.backward()


def test_between_looks_nothing_waits_for_the_gpu(tmp_path: Path) -> None:
    """Whatever would wait for the GPU raises during steps 3 to 5; figures are looked at after the sixth."""
    model, machine, told = make().to(GPU), Machine(GPU, "bf16"), list[int]()

    def emit(event: object) -> None:
        if isinstance(event, Progress) and event.done in (2, 5):
            torch.cuda.set_sync_debug_mode("error" if event.done == 2 else "default")
        if isinstance(event, Metric):
            told.append(event.step)

    try:
        fit(
            model,
            batch=batches(),
            objective=next_token_loss_on(machine),
            optimizer=make_optimizer(model, OptimizerOptions(name="muon")),
            schedule=lambda _: 1.0,
            options=LoopOptions(steps=6, accumulate=2, metric_every=1, look_every=6, spike_sigma=6.0),
            scratch=tmp_path,
            emit=emit,
            precision=machine.make_precision(),
        )
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert told == [1, 2, 3, 4, 5, 6]


def test_batches_come_in_order_on_the_gpu() -> None:
    early = Prefetched(batches(), GPU)
    try:
        for number in range(6):
            batch = early(number)
            assert batch.inputs_BT.device.type == "cuda"
            assert torch.equal(batch.inputs_BT.cpu(), batches()(number).inputs_BT)
    finally:
        early.close()


def test_a_resumed_run_goes_on_as_the_whole_one(tmp_path: Path) -> None:
    whole, _ = trained(tmp_path / "a", steps=20)

    class Cut(Exception):
        pass

    def stop(event: object) -> None:
        if isinstance(event, Metric) and event.step == 12:
            raise Cut

    model, machine = make().to(GPU), Machine(GPU, "bf16")
    folder = tmp_path / "b"
    folder.mkdir()
    with pytest.raises(Cut):
        fit(
            model,
            batch=batches(),
            objective=next_token_loss_on(machine),
            optimizer=make_optimizer(model, OptimizerOptions(name="muon", learning_rate=0.003)),
            schedule=lambda _: 1.0,
            options=LoopOptions(steps=20, accumulate=2, metric_every=1, save_every_seconds=0.0),
            scratch=folder,
            emit=stop,
            precision=Precision("bf16", "cuda"),
        )
    rest, _ = trained(folder, steps=20)
    assert rest == pytest.approx(whole[-len(rest) :], abs=5e-3)


def test_too_large_a_batch_names_the_setting(tmp_path: Path) -> None:
    rows = torch.zeros(1, 256, dtype=torch.long)

    def greedy(model: Transformer, batch: TokenBatch) -> Loss:
        torch.empty(1 << 50, device=GPU)
        return next_token_loss(model, batch)

    model = make().to(GPU)
    with pytest.raises(BadInput, match="out of memory on cuda in step 0: raise passes"):
        fit(
            model,
            batch=lambda _: TokenBatch(rows, rows),
            objective=greedy,
            optimizer=make_optimizer(model, OptimizerOptions()),
            schedule=lambda _: 1.0,
            options=LoopOptions(steps=1, out_of_memory="raise passes"),
            scratch=tmp_path,
            emit=lambda _: None,
        )


def test_the_measured_peak_is_a_gpus() -> None:
    assert 1e13 < peak_flops("cuda", torch.bfloat16) < 1e16

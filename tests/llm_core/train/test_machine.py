"""Number formats: what autocast gives, and the loss scale of fp16."""

from __future__ import annotations

import pytest
import torch

from llm_core.contract import BadInput
from llm_core.train.machine import Precision, prepare


@pytest.mark.parametrize(("name", "kind"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_products_are_in_the_named_format(name: str, kind: torch.dtype) -> None:
    with Precision(name).autocast():
        assert (torch.ones(4, 4) @ torch.ones(4, 4)).dtype == kind


def test_fp16_keeps_gradients_that_would_vanish() -> None:
    def gradient(precision: Precision) -> float:
        weight = torch.ones(1, 1, requires_grad=True)
        with precision.autocast():
            loss = torch.nn.functional.linear(torch.full((1, 1), 1e-4), weight).float().sum() * 1e-4
        precision.scaled(loss).backward()
        assert weight.grad is not None
        return float(weight.grad) / precision.scale

    unscaled = Precision("fp16")
    unscaled.scale = 1.0
    assert gradient(Precision("fp16")) == pytest.approx(1e-8, rel=0.01)
    assert gradient(unscaled) != pytest.approx(1e-8, rel=0.01)


def test_the_scale_halves_on_overflow_and_doubles_after_2000_good_steps() -> None:
    precision = Precision("fp16")
    precision.update(finite=False)
    assert precision.scale == 32768.0
    for _ in range(1999):
        precision.update(finite=True)
    resumed = Precision("fp16")
    resumed.load(precision.state())
    resumed.update(finite=True)
    assert (precision.scale, resumed.scale) == (32768.0, 65536.0)


def test_other_formats_need_no_scale() -> None:
    loss = torch.ones(())
    for name in ("fp32", "bf16"):
        precision = Precision(name)
        precision.update(finite=False)
        assert precision.scaled(loss) is loss


def test_what_the_machine_lacks_is_refused() -> None:
    with pytest.raises(BadInput, match="'fp8'"):
        Precision("fp8")
    if not torch.cuda.is_available():
        with pytest.raises(BadInput, match="sees no GPU"):
            prepare(1, "cuda")
    assert prepare(1, "cpu").precision == "fp32"

"""The GPU's cross-entropy equals the CPU's, chunk by chunk, with cap and z-loss. Here it runs without a compiler."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from llm_core.train.fused_loss import fused_cross_entropy, slope
from llm_core.train.loss import cross_entropy


@pytest.mark.parametrize(("softcap", "z_loss"), [(0.0, 0.0), (5.0, 0.0), (0.0, 1e-2), (5.0, 1e-2)])
@pytest.mark.parametrize("rows", [7, 8, 100])
def test_value_and_gradients_are_those_of_the_plain_loss(softcap: float, z_loss: float, rows: int) -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(40, 16), torch.randn(97, 16)
    targets = torch.randint(0, 97, (40,))
    found = []
    for entropy, more in ((fused_cross_entropy, {"rows": rows, "compiled": False}), (cross_entropy, {})):
        h, w = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        total = entropy(h, w, targets, softcap=softcap, z_loss=z_loss, **more)
        (0.25 * total).backward()
        assert h.grad is not None
        assert w.grad is not None
        found.append((total.detach(), h.grad, w.grad))
    for ours, plain in zip(*found, strict=True):
        assert torch.allclose(ours, plain, rtol=1e-5, atol=1e-5)


def test_it_is_the_textbooks_cross_entropy() -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(30, 50, requires_grad=True), torch.randint(0, 50, (30,))
    loss, grad = slope(logits.detach(), targets)
    expected = F.cross_entropy(logits, targets, reduction="sum")
    expected.backward()
    assert logits.grad is not None
    assert torch.allclose(loss, expected, rtol=1e-6)
    assert torch.allclose(grad, logits.grad, atol=1e-6)

"""Small operations of a block, with backward passes of their own where autograd's would be slow on a CPU.

On a CPU, PyTorch's RMSNorm and the turning of pairs are chains of elementwise operations, each a walk through memory,
and autograd keeps most of their results. Here the chains are short, done in place, and keep only the inputs; gradients
equal autograd's to rounding. On other devices the plain operations are left to kernels and compilers.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def rms_norm(x_D: Tensor, weight_D: Tensor | None, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension (Zhang and Sennrich 2019)."""
    if x_D.device.type != "cpu" or x_D.dtype != torch.float32 or not torch.is_grad_enabled():
        normed: Tensor = F.rms_norm(x_D, x_D.shape[-1:], weight_D, eps)
        return normed
    out: Tensor = _RmsNorm.apply(x_D, weight_D, eps)  # type: ignore[no-untyped-call]
    return out


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
        length: Tensor = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        scale = length.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        out: Tensor = x * scale
        return out if weight is None else out.mul_(weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None]:
        x, weight, scale = ctx.saved_tensors
        normed = x * scale
        grad, grad_weight = grads[0], None
        if weight is not None:
            grad_weight = (grad * normed).flatten(0, -2).sum(0) if ctx.needs_input_grad[1] else None
            grad = grad * weight
        along = (grad * normed).mean(-1, keepdim=True)
        return torch.addcmul(grad, normed, along, value=-1).mul_(scale), grad_weight, None


def rotate(x_E: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Turn each pair (e, e + E/2) of the last dimension by its position's angle; tables broadcast to [..., E/2]."""
    if x_E.device.type != "cpu" or x_E.dtype != torch.float32 or not torch.is_grad_enabled():
        a, b = x_E.chunk(2, dim=-1)
        return torch.cat((a * cosine - b * sine, b * cosine + a * sine), dim=-1)
    out: Tensor = _Rotate.apply(x_E, cosine, sine)  # type: ignore[no-untyped-call]
    return out


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        ctx.save_for_backward(cosine, sine)
        return _turned(x, cosine, sine, 1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        cosine, sine = ctx.saved_tensors
        return _turned(grads[0], cosine, sine, -1), None, None


def _turned(x: Tensor, cosine: Tensor, sine: Tensor, sign: int) -> Tensor:
    out = torch.empty_like(x)
    (a, b), (out_a, out_b) = x.chunk(2, dim=-1), out.chunk(2, dim=-1)
    torch.mul(a, cosine, out=out_a).addcmul_(b, sine, value=-sign)
    torch.mul(b, cosine, out=out_b).addcmul_(a, sine, value=sign)
    return out

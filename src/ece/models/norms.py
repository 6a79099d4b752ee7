"""RMS norms whose gradient is written out: in a third of autograd's time, which is a few percent of a search."""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ece.models.gated import as_made


class RmsNorm(torch.autograd.Function):
    """`weight * x / rms(x)` (arXiv 1910.07467), with its gradient by x; float32 inside."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """As transformers has it: `x` is `[..., d_model]`, `weight` `[d_model]`."""
        wide = x.float()
        scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
        ctx.save_for_backward(x, weight, scale)
        return weight * (wide * scale).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] (the decorator hides its parameters' names)
        ctx: Any, slope: Tensor
    ) -> tuple[Tensor, None, None]:
        """Its gradient by x: of `weight * slope` what is at right angles to x, over rms(x)."""
        x, weight, scale = ctx.saved_tensors
        wide, slope = x.float(), (slope * weight).float()
        along = torch.linalg.vecdot(slope, wide)[..., None] * scale.pow(3) / x.shape[-1]
        return slope.mul_(scale).addcmul_(wide, along, value=-1).to(x.dtype), None, None


def norms_by_hand(network: nn.Module) -> None:
    """Let a network's RMS norms take it, where they are transformers' own and nobody has replaced their `forward`."""
    for module in network.modules():
        of_llama = type(module).__name__.endswith("RMSNorm") and hasattr(module, "variance_epsilon")
        if of_llama and as_made(module):
            module.forward = MethodType(_forward, module)


def _forward(norm: Any, x: Tensor) -> Tensor:
    trained = norm.weight.requires_grad
    return type(norm).forward(norm, x) if trained else RmsNorm.apply(x, norm.weight, norm.variance_epsilon)

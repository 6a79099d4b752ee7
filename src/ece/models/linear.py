"""Linear maps by oneDNN, which torch has beside MKL: a tenth faster at the few hundred positions of a pass."""

from __future__ import annotations

import os
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

LEAST, LARGE = 5, 1 << 16
"""Positions, and numbers in W, from which it is faster: to make a kernel takes half a millisecond."""

KEPT = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "32", "LRU_CACHE_CAPACITY": "1"}
"""How many of its kernels oneDNN keeps, 0.6 MB each, and how many each thread of torch. There is one for every number
of positions, and passes differ: the thousand that both would keep are seldom used again."""


class Linear(torch.autograd.Function):
    """`x W^T + b` of a W that is not trained, with its gradient by x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """`x` is `[..., in]`, `weight` `[out, in]`, `bias` `[out]`."""
        ctx.save_for_backward(weight)
        return product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride] (the decorator hides its parameters' names)
        ctx: Any, slope: Tensor
    ) -> tuple[Tensor, None, None]:
        """`slope W`."""
        (weight,) = ctx.saved_tensors
        return product(slope, weight.T), None, None


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x W^T + b` without a gradient, by the faster of the two."""
    if x.numel() < LEAST * weight.shape[1] or weight.numel() < LARGE:
        return functional.linear(x, weight, bias)
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def available() -> bool:
    """Whether torch has both libraries, and what its compiler calls for a linear map; else it chooses by itself."""
    both = torch.backends.mkldnn.is_available() and torch.backends.mkl.is_available()
    return both and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def maps_by_onednn(network: PreTrainedModel) -> None:
    """Let a network on a processor take it for its linear maps, where nobody has replaced their `forward`."""
    if not available() or network.device.type != "cpu":
        return
    for name, number in KEPT.items():
        os.environ.setdefault(name, number)
    for module in network.modules():
        if type(module) in (nn.Linear, Conv1D) and "forward" not in vars(module):
            module.forward = MethodType(_forward, module)


def _forward(module: Any, x: Tensor) -> Tensor:
    weight, bias = module.weight, module.bias
    trained = weight.requires_grad or (bias is not None and bias.requires_grad)
    if trained or {x.dtype, weight.dtype} != {torch.float32} or {x.device.type, weight.device.type} != {"cpu"}:
        return type(module).forward(module, x)
    weight = weight.T if isinstance(module, Conv1D) else weight
    return Linear.apply(x, weight, bias) if torch.is_grad_enabled() and x.requires_grad else product(x, weight, bias)

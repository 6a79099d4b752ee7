"""RMS norms by hand: the value and gradient of transformers' own."""

from __future__ import annotations

from typing import Any

import pytest
import tiny as make
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

KINDS = ["llama", "mistral", "qwen2", "qwen3", "phi3", "smollm3"]
"""Types whose norms are Llama's."""


@pytest.fixture(params=KINDS)
def norm(request: pytest.FixtureRequest) -> Any:
    """A norm of each type, with a weight of its own."""
    model = make.build(request.param)
    norm: Any = model.network.get_submodule(model.family.final_norm)
    norm.weight.copy_(torch.rand_like(norm.weight) + 0.5)
    return norm


@pytest.mark.parametrize(("dtype", "off"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_value_and_gradient_are_transformers_own(norm: Any, dtype: torch.dtype, off: float):
    assert "forward" in vars(norm)
    norm.to(dtype)
    x = (3 * torch.randn(2, 5, len(norm.weight))).to(dtype).requires_grad_()
    slope = torch.randn(2, 5, len(norm.weight)).to(dtype)
    ours, theirs = norm(x), type(norm).forward(norm, x)
    assert torch.equal(ours, theirs)
    (found,), (wanted,) = (torch.autograd.grad(value, x, slope) for value in (ours, theirs))
    assert found.dtype == dtype
    torch.testing.assert_close(found, wanted, rtol=off, atol=off)


def test_the_gradient_against_differences_in_float64(norm: Any):
    """Of a reference that is written out here, in float64."""
    weight, eps = norm.weight.double(), norm.variance_epsilon
    x, slope = torch.randn(4, len(weight)), torch.randn(4, len(weight))

    def value(x: Tensor) -> Tensor:
        return (slope.double() * weight * x / (x.square().mean(1, keepdim=True) + eps).sqrt()).sum()

    x.requires_grad_()
    (found,) = torch.autograd.grad(norm(x), x, slope)
    step, wanted = 1e-5, torch.empty(x.shape, dtype=torch.float64)
    for place in range(x.numel()):
        aside = torch.zeros(x.numel(), dtype=torch.float64)
        aside[place] = step
        aside = aside.view_as(x)
        wanted.view(-1)[place] = (value(x.detach() + aside) - value(x.detach() - aside)) / (2 * step)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-5)


def test_what_enters_is_all_that_is_kept(norm: Any):
    held: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        if tensor.shape == x.shape:
            held.append(tensor)
        return tensor

    x = torch.randn(1, 7, len(norm.weight), requires_grad=True)
    with saved_tensors_hooks(note, lambda tensor: tensor):
        norm(x)
    assert [tensor.data_ptr() for tensor in held] == [x.data_ptr()]


def test_a_weight_that_is_trained_has_its_gradient(norm: Any):
    norm.weight.requires_grad_()
    x, slope = torch.randn(3, len(norm.weight)), torch.randn(3, len(norm.weight))
    (found,) = torch.autograd.grad(norm(x), norm.weight, slope)
    (wanted,) = torch.autograd.grad(type(norm).forward(norm, x), norm.weight, slope)
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("kind", ["gemma", "olmo", "gpt2"])
def test_other_norms_are_left_alone(kind: str):
    model = make.build(kind)
    assert "forward" not in vars(model.network.get_submodule(model.family.final_norm))

"""Linear maps by oneDNN: the value and gradient of torch's own."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import tiny as make
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers.pytorch_utils import Conv1D

from ece.models.linear import KEPT, LEAST, Linear, available, product

pytestmark = pytest.mark.skipif(not available(), reason="torch has not both oneDNN and MKL here")

GROWTH = """
import sys
import torch
from ece.models.linear import KEPT, product
if "few" in sys.argv:
    import os
    os.environ.update(KEPT)
torch.set_num_threads(1)
weight, x = torch.randn(1536, 576), torch.randn(400, 576)
def resident():
    from ece.heap import memory_returned
    with memory_returned():
        pass
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS"))
product(x, weight)
before = resident()
for positions in range(100, 300):
    product(x[:positions], weight)
print((resident() - before) // 1024)
"""


@pytest.fixture(autouse=True)
def small_maps_too(monkeypatch: pytest.MonkeyPatch):
    """As those of tiny models are."""
    monkeypatch.setattr("ece.models.linear.LARGE", 1)


@settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(positions=st.integers(1, 3 * LEAST), rows=st.integers(1, 3), inner=st.integers(1, 40), outer=st.integers(1, 40))
def test_it_is_the_product(positions: int, rows: int, inner: int, outer: int):
    """Against float64, there and back, on both sides of the least."""
    x, slope = torch.randn(rows, positions, inner, requires_grad=True), torch.randn(rows, positions, outer)
    weight, bias = torch.randn(outer, inner), torch.randn(outer)
    found = Linear.apply(x, weight, bias)
    assert isinstance(found, Tensor)
    torch.testing.assert_close(found.double(), x.double() @ weight.double().T + bias.double(), rtol=1e-4, atol=1e-4)
    (gradient,) = torch.autograd.grad(found, x, slope)
    torch.testing.assert_close(gradient.double(), slope.double() @ weight.double(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gptj", "qwen2", "phi3"])
def test_a_network_with_it_says_the_same(kind: str):
    """There and back; its maps are taken, the unembedding's with them."""
    model = make.build(kind)
    ids = torch.arange(3, 3 + 2 * LEAST)[None]
    maps = [module for module in model.network.modules() if type(module) in (nn.Linear, Conv1D)]
    assert len(maps) > len(model.layers)
    assert model.network.get_output_embeddings() in maps
    assert all("forward" in vars(module) for module in maps)
    found = make.read(model.network, ids)
    for module in maps:
        del module.forward
    for ours, theirs in zip(found, make.read(model.network, ids), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_what_is_trained_has_its_gradient(name: str):
    linear: Any = make.build("gpt2").network.get_submodule("transformer.h.0.mlp.c_fc")
    trained = getattr(linear, name).requires_grad_()
    x = torch.randn(2 * LEAST, linear.nx)
    (found,) = torch.autograd.grad(linear(x).square().sum(), trained)
    (wanted,) = torch.autograd.grad(type(linear).forward(linear, x).square().sum(), trained)
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_another_dtype_is_left_to_torch(dtype: torch.dtype):
    linear: Any = make.build("llama").layers[0].get_submodule("mlp.up_proj")
    linear.to(dtype)
    x = torch.randn(2 * LEAST, linear.in_features, dtype=dtype)
    assert torch.equal(linear(x), type(linear).forward(linear, x))


def test_a_weight_that_is_changed_is_seen():
    """Nothing of a weight is kept."""
    linear: Any = make.build("llama").layers[0].get_submodule("mlp.up_proj")
    x = torch.randn(2 * LEAST, linear.in_features)
    linear(x)
    linear.weight.mul_(2)
    torch.testing.assert_close(linear(x), type(linear).forward(linear, x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("library", ["mkldnn", "mkl"])
def test_without_both_libraries_torch_chooses(library: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(getattr(torch.backends, library), "is_available", lambda: False)
    model = make.build("llama")
    assert "forward" not in vars(model.layers[0].get_submodule("mlp.up_proj"))


def test_a_torch_that_does_not_have_it_is_left_alone(monkeypatch: pytest.MonkeyPatch):
    """What is taken is not of torch's public interface."""
    monkeypatch.setattr(torch.ops, "mkldnn", object())
    assert not available()
    model = make.build("llama")
    assert "forward" not in vars(model.layers[0].get_submodule("mlp.up_proj"))


def test_how_much_is_kept_can_be_said_by_the_user(monkeypatch: pytest.MonkeyPatch):
    first, second = KEPT
    monkeypatch.setenv(first, "77")
    monkeypatch.delenv(second, raising=False)
    make.build("llama")
    assert (os.environ[first], os.environ[second]) == ("77", KEPT[second])


def test_kernels_of_many_lengths_are_not_kept():
    """In MB: each length has a kernel of half a megabyte."""
    environment = {name: value for name, value in os.environ.items() if name not in KEPT}

    def growth(kept: str) -> int:
        command = [sys.executable, "-c", GROWTH, kept]
        return int(subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout)

    assert growth("few") < 40 < growth("many")


def test_few_positions_and_many_give_the_same():
    x, weight = torch.randn(3 * LEAST, 24), torch.randn(40, 24)
    together = product(x, weight)
    alone = torch.cat([product(row[None], weight) for row in x])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_it_is_taken_from_so_many_positions_and_numbers_on(monkeypatch: pytest.MonkeyPatch):
    """torch's counter knows its own product alone."""
    monkeypatch.setattr("ece.models.linear.LARGE", 40 * 24)
    counts = []
    for positions, outer in ((LEAST - 1, 40), (LEAST, 40), (LEAST, 39)):
        with FlopCounterMode(display=False) as counter:
            product(torch.randn(positions, 24), torch.randn(outer, 24))
        counts.append(counter.get_total_flops())
    assert counts == [2 * (LEAST - 1) * 24 * 40, 0, 2 * LEAST * 24 * 39]

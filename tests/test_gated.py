"""Gated FFNs: the value and gradient of transformers' own, with less kept for it."""

from __future__ import annotations

from typing import Any

import pytest
import tiny as make
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode
from transformers.activations import ACT2FN

from ece.models.gated import Gated, activations_made_again


@pytest.mark.parametrize("name", ["silu", "gelu", "gelu_pytorch_tanh", "linear"])
def test_the_gradient_is_that_of_the_product(name: str):
    act: Any = ACT2FN[name]
    gate, up = (torch.randn(3, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.equal(Gated.apply(gate, up, act), act(gate) * up)
    assert torch.autograd.gradcheck(lambda gate, up: Gated.apply(gate, up, act), (gate, up))


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3", "gemma", "smollm3", "olmo"])
def test_a_network_with_them_is_what_it_was(kind: str):
    """Bit for bit, there and back."""
    model = make.build(kind)
    ids = torch.tensor([[3, 4, 5, 6]])
    found = make.read(model.network, ids)
    ffns = [layer.get_submodule("mlp") for layer in model.layers]
    for ffn in ffns:
        del ffn.forward
    plain = make.read(model.network, ids)
    activations_made_again(model.network)
    assert all("forward" in vars(ffn) for ffn in ffns)
    for ours, theirs in zip(found, plain, strict=True):
        assert torch.equal(ours, theirs)


def test_the_activation_is_not_kept():
    def kept() -> int:
        """Tensors as wide as the FFN that a gradient keeps."""
        places: set[int] = set()

        def note(tensor: Tensor) -> Tensor:
            if tensor.shape[-2:] == (7, model.d_ff):
                places.add(tensor.data_ptr())
            return tensor

        with saved_tensors_hooks(note, lambda tensor: tensor):
            out = ffn(x)
        assert out.requires_grad
        return len(places)

    model = make.build("llama")
    ffn, x = model.layers[1].get_submodule("mlp"), torch.randn(1, 7, model.d_model, requires_grad=True)
    ours = kept()
    del ffn.forward
    assert (ours, kept()) == (2, 3)


def test_operations_can_be_counted():
    model = make.build("llama")
    with FlopCounterMode(display=False) as counter:
        make.read(model.network, torch.tensor([[3, 4, 5]]))
    assert counter.get_total_flops() > 0


@pytest.mark.parametrize("kind", ["phi3", "gpt2", "gptj"])
def test_other_ffns_are_left_alone(kind: str):
    assert "forward" not in vars(make.build(kind).layers[0].get_submodule("mlp"))

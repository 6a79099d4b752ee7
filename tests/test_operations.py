"""What benchmarks count as operations."""

from __future__ import annotations

import pytest
import tiny as make
import torch
from operations import counted
from torch import nn
from torch.nn.functional import scaled_dot_product_attention


def test_products_are_counted():
    with counted() as counter:
        torch.mm(torch.randn(3, 5), torch.randn(5, 7))
    assert counter.get_total_flops() == 2 * 3 * 5 * 7


def test_the_products_of_attention_are_counted():
    """Two there, and five back: the scores again, and the gradients of both products by both of their factors."""
    rows, heads, queries, keys, width = 2, 3, 4, 7, 8
    query = torch.randn(rows, heads, queries, width, requires_grad=True)
    key, value = (torch.randn(rows, heads, keys, width, requires_grad=True) for _ in range(2))
    product = 2 * rows * heads * queries * keys * width
    with counted() as counter:
        read = scaled_dot_product_attention(query, key, value)
    assert counter.get_total_flops() == 2 * product
    with counted() as counter:
        read.sum().backward()
    assert counter.get_total_flops() == 5 * product


def test_the_linear_maps_of_a_model_are_counted(monkeypatch: pytest.MonkeyPatch):
    """However torch multiplies: as often as its own maps."""
    monkeypatch.setattr("ece.models.linear.LARGE", 1)
    linear = make.build("llama").layers[0].get_submodule("mlp.up_proj")
    assert isinstance(linear, nn.Linear)
    x = torch.randn(2, 50, linear.in_features, requires_grad=True)
    for _ in range(2):
        with counted() as counter:
            linear(x).sum().backward()
        assert counter.get_total_flops() == 2 * 2 * 100 * linear.in_features * linear.out_features
        vars(linear).pop("forward", None)

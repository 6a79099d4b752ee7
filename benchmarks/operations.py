"""How many floating-point operations something takes: those of its matrix products, attention's with them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Size, ops
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from ece.models.linear import available


def forward(query: Size, key: Size, value: Size, *_: Any, **__: Any) -> int:
    """Of attention `[rows, heads, queries or keys, d_head]`, padding included."""
    return sdpa_flop_count(query, key, value)


def backward(slope: Size, query: Size, key: Size, value: Size, *_: Any, **__: Any) -> int:
    """Of its gradient, which makes the scores again."""
    return sdpa_backward_flop_count(slope, query, key, value)


def linear(x: Size, weight: Size, *_: Any, **__: Any) -> int:
    """Of a linear map of `[..., in]` by `[out, in]`."""
    return 2 * math.prod(x) * weight[0]


ON_A_PROCESSOR: dict[Any, Callable[..., int]] = {
    ops.aten._scaled_dot_product_flash_attention_for_cpu: forward,
    ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: backward,
}
"""What torch's counter knows for other devices alone."""
if available():
    ON_A_PROCESSOR[ops.mkldnn._linear_pointwise] = linear


def counted() -> FlopCounterMode:
    """A context that counts; what it found is its `get_total_flops()`."""
    return FlopCounterMode(display=False, custom_mapping=ON_A_PROCESSOR)

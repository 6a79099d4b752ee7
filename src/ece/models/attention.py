"""Attention on a processor: heads that share keys and values read them together, and nothing is copied for each."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

if TYPE_CHECKING:
    from ece.models.padding import Packing
    from ece.models.replay import Past

GROUPED = "ece-grouped"


def grouped_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    past: Past | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """What transformers' `sdpa` gives, with each key head's queries in one longer row instead of keys repeated.

    Args:
        module: the attention.
        query: `[rows, heads, queries, d_head]`
        key: `[rows, key heads, keys, d_head]`
        value: as `key`.
        attention_mask: `[rows, 1, queries, keys]`, or what `sdpa` takes besides.
        past: what comes before packed rows. Queries, keys and values then are `[1, heads, real, d_head]`.
        options: of transformers' attention functions.

    Returns:
        `[rows, queries, heads, d_head]` (`[1, real, heads, d_head]`, if packed), and no weights.
    """
    if past and past.packing:
        return _packed_attention(module, query, key, value, attention_mask, past, past.packing, **options), None
    together = _together(query, key, attention_mask, options)
    if together == 1 or attention_mask is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    read = _read(_grouped(query, together), key, value, attention_mask.repeat(1, 1, together, 1), options)
    return read.reshape(*query.shape[:3], -1).transpose(1, 2).contiguous(), None


def _packed_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    past: Past,
    packing: Packing,
    **options: Any,
) -> Tensor:
    """As `grouped_attention`; whatever is padded, or of the past, is made again for the gradient instead of kept.

    A copy of the past in every layer would be a fifth of all that is kept, padded queries and what they read a tenth.
    """
    with _made_again() as again:
        whole = partial(past.whole, module.layer_idx)
        keys, values = whole(0, key), whole(1, value)
        again += [(keys, partial(whole, 0, key.detach())), (values, partial(whole, 1, value.detach()))]
        rows = packing.heads(query)
        together = _together(rows, keys, attention_mask, options)
        if together == 1 or attention_mask is None:
            return packing.pack(sdpa_attention_forward(module, rows, keys, values, attention_mask, **options)[0])
        grouped, mask = _grouped(rows, together), packing.once(_added, attention_mask, together, query.dtype)
        read = _read(grouped, keys, values, mask, options)
        packed = packing.pack(read.reshape(*rows.shape[:3], -1).transpose(1, 2))

        def grouped_again(real: Tensor) -> Tensor:
            return _grouped(packing.heads(real), together)

        again += [
            (grouped, partial(grouped_again, query.detach())),
            (read, partial(grouped_again, packed.detach().transpose(1, 2))),
        ]
        return packed


def _together(query: Tensor, key: Tensor, mask: Tensor | None, options: Mapping[str, Any]) -> int:
    """How many heads read the same keys together; 1 where that is left to transformers."""
    left_to_sdpa = any(options.get(name) is not None for name in ("position_bias", "softcap"))
    return 1 if left_to_sdpa or mask is None or mask.shape[1] != 1 else query.shape[1] // key.shape[1]


def _grouped(query: Tensor, together: int) -> Tensor:
    """`[rows, heads, queries, d_head]` as `[rows, key heads, together * queries, d_head]`."""
    rows, heads, queries, width = query.shape
    return query.reshape(rows, heads // together, together * queries, width)


def _added(mask: Tensor, together: int, dtype: torch.dtype) -> Tensor:
    """A mask for grouped queries, as what is added to their scores."""
    mask = mask.repeat(1, 1, together, 1)
    return mask.new_zeros(mask.shape, dtype=dtype).masked_fill_(~mask, -math.inf) if mask.dtype == torch.bool else mask


def _read(grouped: Tensor, key: Tensor, value: Tensor, mask: Tensor, options: Mapping[str, Any]) -> Tensor:
    """What grouped queries read `[rows, key heads, together * queries, d_head]`."""
    dropout, scale = options.get("dropout", 0.0), options.get("scaling")
    return scaled_dot_product_attention(grouped, key, value, mask, dropout_p=dropout, scale=scale)


@dataclass
class _Held:
    """A tensor that a gradient needs, or what makes it again."""

    value: Tensor | Callable[[], Tensor]

    def made(self) -> Tensor:
        """The tensor."""
        return self.value if isinstance(self.value, Tensor) else self.value()


@contextmanager
def _made_again() -> Iterator[list[tuple[Tensor, Callable[[], Tensor]]]]:
    """A gradient of what is done meanwhile does not keep the tensors that are listed with what makes them again."""
    held: list[_Held] = []
    again: list[tuple[Tensor, Callable[[], Tensor]]] = []

    def hold(tensor: Tensor) -> _Held:
        held.append(_Held(tensor))
        return held[-1]

    with saved_tensors_hooks(hold, _Held.made):
        yield again
    makers = {(made.data_ptr(), made.shape, made.stride()): make for made, make in again}
    for each in held:
        if isinstance(tensor := each.value, Tensor):
            each.value = makers.get((tensor.data_ptr(), tensor.shape, tensor.stride()), tensor)
    held.clear()
    again.clear()


def takes_packed(network: PreTrainedModel) -> bool:
    """Whether a network's attention knows what to do with packed rows."""
    return network.config._attn_implementation == GROUPED


def group_heads(network: PreTrainedModel) -> None:
    """Let a network on a processor attend in this way, if it would use `sdpa`."""
    if network.device.type == "cpu" and network.config._attn_implementation == "sdpa":
        network.set_attn_implementation(GROUPED)


AttentionInterface.register(GROUPED, grouped_attention)
AttentionMaskInterface.register(GROUPED, sdpa_mask)

"""Attention on a processor: heads that share keys and values read them together, and nothing is copied for each."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from ece.models.reading import FEW, Layout, Reading, wide

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
    """As `grouped_attention`: written out where it is plain and has few scores, else taken apart for `sdpa`."""
    layer, heads, key_heads = module.layer_idx, query.shape[1], key.shape[1]
    if attention_mask is not None and _plain(attention_mask, options) and not options.get("dropout"):
        before, scale = past.states.get(layer), options.get("scaling") or query.shape[-1] ** -0.5
        layout = packing.once(Layout.of, past.where, packing.visible, heads, key_heads, len(before[0]) if before else 0)
        if layout.scores <= FEW:
            masks = packing.once(_added, attention_mask, layout, heads, key_heads, query.dtype)
            return Reading.apply(query, key, value, before, masks, scale, layout)
    whole = past.whole(layer, 0, key), past.whole(layer, 1, value)
    return packing.pack(grouped_attention(module, packing.heads(query), *whole, attention_mask, **options)[0])


def _plain(mask: Tensor, options: Mapping[str, Any]) -> bool:
    """Whether all there is to add to the scores is one mask for all heads."""
    return mask.shape[1] == 1 and all(options.get(name) is None for name in ("position_bias", "softcap"))


def _together(query: Tensor, key: Tensor, mask: Tensor | None, options: Mapping[str, Any]) -> int:
    """How many heads read the same keys together; 1 where that is left to transformers."""
    return 1 if mask is None or not _plain(mask, options) else query.shape[1] // key.shape[1]


def _grouped(query: Tensor, together: int) -> Tensor:
    """`[rows, heads, queries, d_head]` as `[rows, key heads, together * queries, d_head]`."""
    rows, heads, queries, width = query.shape
    return query.reshape(rows, heads // together, together * queries, width)


def _added(mask: Tensor, layout: Layout, heads: int, key_heads: int, dtype: torch.dtype) -> list[Tensor]:
    """Of each block what is added to the scores of its grouped queries: `[matrices, together * positions, keys]`."""
    if mask.dtype == torch.bool:
        mask = mask.new_zeros(mask.shape, dtype=dtype).masked_fill_(~mask, -math.inf)
    return [wide(_of_heads(block.seen(mask[:, 0]), heads, key_heads)) for block in layout.blocks]


def _of_heads(mask: Tensor, heads: int, key_heads: int) -> Tensor:
    """`[rows, queries, keys]` for all heads: `[rows * key heads, together * queries, keys]`."""
    rows, queries, keys = mask.shape
    return mask[:, None].expand(rows, heads, queries, keys).reshape(rows * key_heads, -1, keys)


def _read(grouped: Tensor, key: Tensor, value: Tensor, mask: Tensor, options: Mapping[str, Any]) -> Tensor:
    """What grouped queries read `[rows, key heads, together * queries, d_head]`."""
    dropout, scale = options.get("dropout", 0.0), options.get("scaling")
    return scaled_dot_product_attention(grouped, key, value, mask, dropout_p=dropout, scale=scale)


def takes_packed(network: PreTrainedModel) -> bool:
    """Whether a network's attention knows what to do with packed rows."""
    return network.config._attn_implementation == GROUPED


def group_heads(network: PreTrainedModel) -> None:
    """Let a network on a processor attend in this way, if it would use `sdpa`."""
    if network.device.type == "cpu" and network.config._attn_implementation == "sdpa":
        network.set_attn_implementation(GROUPED)


AttentionInterface.register(GROUPED, grouped_attention)
AttentionMaskInterface.register(GROUPED, sdpa_mask)

"""Attention on a processor: heads that share keys and values read them together, and nothing is copied for each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

if TYPE_CHECKING:
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
        again = [partial(past.whole, module.layer_idx, part, each.detach()) for part, each in enumerate((key, value))]
        key, value = (past.whole(module.layer_idx, part, each) for part, each in enumerate((key, value)))
        with _made_again([(key, again[0]), (value, again[1])]):
            read, _ = grouped_attention(module, past.packing.heads(query), key, value, attention_mask, **options)
        return past.packing.pack(read), None
    rows, heads, queries, width = query.shape
    together = heads // key.shape[1]
    left_to_sdpa = any(options.get(name) is not None for name in ("position_bias", "softcap"))
    if together == 1 or left_to_sdpa or attention_mask is None or attention_mask.shape[1] != 1:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    packed = query.reshape(rows, key.shape[1], together * queries, width)
    mask = attention_mask.repeat(1, 1, together, 1)
    read = scaled_dot_product_attention(
        packed, key, value, mask, dropout_p=options.get("dropout", 0.0), scale=options.get("scaling")
    )
    return read.reshape(rows, heads, queries, -1).transpose(1, 2).contiguous(), None


@contextmanager
def _made_again(tensors: Sequence[tuple[Tensor, Callable[[], Tensor]]]) -> Iterator[None]:
    """While this lasts, a gradient does not keep these tensors but makes them again: the past is the same every time.

    A copy of it in every layer would be a fifth of all that is kept.
    """
    makers = {(made.data_ptr(), made.shape, made.stride()): again for made, again in tensors}

    def pack(tensor: Tensor) -> Tensor | Callable[[], Tensor]:
        return makers.get((tensor.data_ptr(), tensor.shape, tensor.stride()), tensor)

    def unpack(kept: Tensor | Callable[[], Tensor]) -> Tensor:
        return kept if isinstance(kept, Tensor) else kept()

    with saved_tensors_hooks(pack, unpack):
        yield
    makers.clear()


def takes_packed(network: PreTrainedModel) -> bool:
    """Whether a network's attention knows what to do with packed rows."""
    return network.config._attn_implementation == GROUPED


def group_heads(network: PreTrainedModel) -> None:
    """Let a network on a processor attend in this way, if it would use `sdpa`."""
    if network.device.type == "cpu" and network.config._attn_implementation == "sdpa":
        network.set_attn_implementation(GROUPED)


AttentionInterface.register(GROUPED, grouped_attention)
AttentionMaskInterface.register(GROUPED, sdpa_mask)

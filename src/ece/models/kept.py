"""What a gradient keeps of the way there: less, where a little work makes it again."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

if TYPE_CHECKING:
    from ece.models.model import Model

Maker = Callable[[], Tensor]
Makers = dict[tuple[Any, ...], Maker]
"""What makes a tensor again, by where the tensor is."""


@contextmanager
def made_again(tensors: Sequence[tuple[Tensor, Maker]] = ()) -> Iterator[Makers]:
    """While this lasts, a gradient in this thread does not keep these tensors but makes them again.

    More may be added to what is given here; none may be freed while it is in there.
    """
    makers = {place(tensor): again for tensor, again in tensors}

    def pack(tensor: Tensor) -> Tensor | Maker:
        return makers.get(place(tensor), tensor)

    def unpack(kept: Tensor | Maker) -> Tensor:
        return kept if isinstance(kept, Tensor) else kept()

    with saved_tensors_hooks(pack, unpack):
        yield makers
    makers.clear()


def place(tensor: Tensor) -> tuple[Any, ...]:
    """Where a tensor is in memory, and how it lies there."""
    return tensor.data_ptr(), tensor.shape, tensor.stride()


@contextmanager
def activations_made_again(model: Model, layers: Sequence[int]) -> Iterator[None]:
    """While this lasts, a gradient in this thread keeps what enters the FFNs' activations, not what leaves them.

    In a gated FFN that is a fifth of all that is kept.
    """
    here = threading.get_ident()
    with made_again() as makers:

        def left(function: nn.Module, entered: tuple[Tensor, ...], output: Tensor) -> None:
            if threading.get_ident() == here:
                makers[place(output)] = partial(function.forward, entered[0].detach())

        def used(*_: Any) -> None:
            if threading.get_ident() == here:
                makers.clear()

        handles = [
            handle
            for layer in layers
            if (function := model.activation(layer))
            for handle in (
                function.register_forward_hook(left),
                model.ffn_output(layer).register_forward_pre_hook(used),
            )
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

"""The seam for methods that leave the weights alone: a memory is asked about each prompt before the model is.

`likelihoods` and `continuations` are the doors through which the project asks the model. Both answer every prompt
as the bare model does, and once more those that a memory claims; what no memory claims is computed in the same passes
as without memories, so its answers keep their bits. A text without a prompt, of which the perplexity is taken, is read
by the bare model; lm-evaluation-harness and the server have doors of their own, and refuse memories.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from ece.models.model import Model


@dataclass(frozen=True)
class Patch:
    """A layer's output, to be put in place of its own at a prompt's last token."""

    layer: int
    value: Tensor
    """`[d_model]`"""


@dataclass(frozen=True)
class Route:
    """What a memory does about a prompt."""

    before: str = ""
    """Text put in front of it."""

    stop: str | None = None
    """What the model writes ends before this."""

    patch: Patch | None = None


class Memory(Protocol):
    """Facts kept beside the model, by one edit."""

    @property
    def kind(self) -> str:
        """What sort of memory it is; memories of a kind are asked as one."""
        ...

    def joined(self, later: Any) -> Any:
        """This memory followed by a later one of its kind, as one."""
        ...

    def routes(self, model: Model, prompts: Sequence[str]) -> list[Route | None]:
        """What is done about each prompt; None for those it does not claim."""
        ...

    def tensors(self) -> dict[str, Tensor]:
        """What it keeps, by name."""
        ...

    def about(self) -> dict[str, Any]:
        """What else it keeps, as plain data."""
        ...


def routes(model: Model, prompts: Sequence[str]) -> dict[int, Route]:
    """By number of the prompt: its route, where a memory claims it; the kind that was added last is asked first."""
    together: dict[str, Memory] = {}
    for memory in model.memories:
        earlier = together.pop(memory.kind, None)
        together[memory.kind] = earlier.joined(memory) if earlier else memory
    found: dict[int, Route] = {}
    for memory in reversed(together.values()):
        left = [i for i in range(len(prompts)) if i not in found]
        claimed = memory.routes(model, [prompts[i] for i in left])
        found |= {i: route for i, route in zip(left, claimed, strict=True) if route}
    return found


@contextmanager
def forgotten(model: Model) -> Iterator[None]:
    """While this lasts, no memory is asked; those that come are gone at its end."""
    memories = list(model.memories)
    model.memories.clear()
    try:
        yield
    finally:
        model.memories[:] = memories


@contextmanager
def patched(model: Model, patches: Sequence[Patch | None], positions: Sequence[Sequence[int]]) -> Iterator[None]:
    """While this lasts, the first pass of these rows has the patches' values at the positions `[rows][...]`."""
    by_layer: dict[int, list[int]] = {}
    for row, patch in enumerate(patches):
        if patch is not None:
            by_layer.setdefault(patch.layer, []).append(row)

    def hook(rows: list[int]) -> Any:
        done = False

        def put(_: nn.Module, __: Any, output: Any) -> Any:
            nonlocal done
            if done:
                return output
            done = True
            hidden = output[0] if isinstance(output, tuple) else output
            hidden = hidden.clone()
            for row in rows:
                patch = patches[row]
                if patch is not None:
                    hidden[row, torch.tensor(positions[row], device=hidden.device)] = patch.value.to(hidden)
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        return put

    handles = [model.layers[layer].register_forward_hook(hook(rows)) for layer, rows in by_layer.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()

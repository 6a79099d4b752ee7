"""Whether an edit fits into memory: said before it starts, with what to lower."""

from __future__ import annotations

import psutil
import torch

from ece.errors import UserError
from ece.methods.recipe import Recipe
from ece.models import Model
from ece.models.abreast import workers


def available(device: torch.device) -> int:
    """Bytes that can still be taken on a device, those that torch's allocator holds ready among them."""
    if device.type == "cuda":
        idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + idle
    return psutil.virtual_memory().available


def needed(model: Model, recipe: Recipe, tokens: int) -> int:
    """Bytes that an edit takes beside the model: moments, the system that is solved, and what the search holds.

    Args:
        model: the model.
        recipe: with the layers that it edits.
        tokens: tail tokens in the search's passes at a time.
    """
    square = 8 * model.d_ff**2
    moment = square // 2  # E[kk^T] is in float32, and a history keeps each number once
    moments = (2 if recipe.history else 1) * len(recipe.edited) * moment
    above = len(model.layers) - recipe.edited[-1] - 1
    one_token = model.weight(0).element_size() * above * (12 * model.d_model + 4 * model.d_ff)
    return moments + 4 * square + tokens * one_token


def check(model: Model, recipe: Recipe, tokens: int) -> None:
    """Refuse what will not fit.

    Args:
        model: the model.
        recipe: with the layers that it edits.
        tokens: tail tokens in the search's passes at a time.

    Raises:
        UserError: says how much is needed and there, and what to lower.
    """
    device = model.weight(recipe.edited[0]).device
    need, there = needed(model, recipe, tokens), available(device)
    if need <= there:
        return
    without = needed(model, recipe, 0)
    most = tokens * (there - without) // (need - without) // workers(model) if there > without else 0
    passes = f" search in passes that fit (--set pass_tokens={most})," if most else ""
    raise UserError(
        f"not enough memory on {device}: about {need / 1e9:.1f} GB needed beside the model, {there / 1e9:.1f} GB free;"
        f"{passes} edit fewer layers (--set layers=...), load the model in bfloat16 (--dtype), or free some memory"
    )

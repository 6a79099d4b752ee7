"""Contexts: short texts of the model's own, put before a prompt so that an edit does not depend on what precedes it."""

from __future__ import annotations

import torch
from torch import Tensor

from ece.models.generate import drawn
from ece.models.model import Model
from ece.models.replay import padded
from ece.models.tokens import encode

OPENINGS = ("The", "Therefore", "Because", "I", "You")
"""MEMIT's (Meng et al. 2023)."""

LIKELY = 20
"""Each token is drawn from so many, the most probable ones."""


@torch.no_grad()
def contexts(model: Model, length: int = 10, seed: int = 0) -> list[str]:
    """The empty context, and one generated text of `length` tokens for each opening.

    Args:
        model: the model that writes them, as it is now.
        length: tokens generated.
        seed: of the sampling; the model's own random state is left alone.
    """
    rows = [encode(model, opening)[0] for opening in OPENINGS]
    for noise in _noise(len(rows), length, seed):
        ids, _ = padded(rows, model.device)  # to the right, where nothing sees it
        logits = model.network(ids).logits[range(len(rows)), [len(row) - 1 for row in rows]]
        for row, token in zip(rows, drawn(logits, noise).tolist(), strict=True):
            row += token
    texts = [str(model.tokenizer.decode(row, skip_special_tokens=True)) for row in rows]
    return ["", *(f"{' '.join(text.split())}. " for text in texts)]


def _noise(openings: int, length: int, seed: int) -> Tensor:
    """Exponential noise `[length, openings, LIKELY]`.

    One opening's is taken after the other's: what an opening goes on with depends on none that follow it.
    """
    generator = torch.Generator().manual_seed(seed)
    noise = [torch.empty(LIKELY).exponential_(generator=generator) for _ in range(openings * length)]
    return torch.stack(noise).unflatten(0, (openings, length)).transpose(0, 1)

"""Which of the critical layers are written, and what share of the residual each takes: a recipe's `spread`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

FEW = 10
"""With so many others, what a fact has in common with them is taken to be half of their mean."""


@dataclass(frozen=True)
class Spread:
    """The layers in turn; each writes a share of what is then left of the residual."""

    layers: Literal["all", "ends", "last"] = "all"
    """Of the critical layers: all of them, the first and the last (BLUE, arXiv 2502.03748), or the last (ROME)."""

    share: Literal["even", "root"] = "even"
    """`1 / layers left` (MEMIT, arXiv 2210.07229), or `1 / sqrt(layers left)` (PMET, arXiv 2308.08742)."""

    own_targets: bool = False
    """Each layer gets targets of its own, sought once the layers below are written, and writes all of the residual
    (BLUE); otherwise all write toward the last one's."""

    def written(self, critical: tuple[int, ...]) -> tuple[int, ...]:
        """Those of the critical layers that are written."""
        ends = (critical[0], critical[-1])
        return {"all": critical, "ends": tuple(sorted(set(ends))), "last": critical[-1:]}[self.layers]

    def divisor(self, left: int) -> float:
        """What the residual is divided by when so many layers are left, this one included."""
        return math.sqrt(left) if self.share == "root" else left


def in_common(residuals: Tensor, facts: int) -> Tensor:
    """What each fact's residual has in common with the others': their mean, less of it where they are few.

    Args:
        residuals: `[facts + facts x contexts, d_model]`: after bare prompts, and after each fact's contexts.
        facts: how many.

    Returns:
        As `residuals`; it is that of bare prompts after contexts, too.
    """
    bare = residuals[:facts]
    of_others = (bare.sum(0) - bare) / (facts - 1 + FEW)
    return torch.cat([of_others, of_others.repeat_interleave(len(residuals) // facts - 1, 0)])


@dataclass(frozen=True)
class Rounds:
    """NSE's iterative editing (arXiv 2410.04045): layers are swept again for facts that are not reached."""

    at_most: Annotated[int, Field(ge=1)] = 1
    """Sweeps over the layers."""

    above: Annotated[float, Field(ge=0)] = 0.0
    """A fact takes part while the norm of what is left, |z - h|, is above this (NSE's alpha)."""

    below: Annotated[float, Field(gt=0)] | None = None
    """... and below this, where it is given: what is further off is hopeless."""

    def open(self, residuals: Tensor) -> Tensor:
        """Numbers of the facts that take part in the next sweep, of residuals `[facts, d_model]`."""
        norms = residuals.norm(dim=1)
        wanted = norms > self.above
        if self.below is not None:
            wanted &= norms < self.below
        return torch.nonzero(wanted)[:, 0]

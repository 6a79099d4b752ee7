"""How one layer's change is solved for: a recipe's `solve`. Facts are rows here, where the papers have columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, Protocol

import torch
from pydantic import Field
from torch import Tensor

from ece.errors import UserError
from ece.models.overlay import LowRank
from ece.update.solve import least_squares, positive_solve


@dataclass(frozen=True)
class Writing:
    """What one layer is to write, and what it must keep."""

    keys: Tensor
    """K1 `[facts, d_ff]`"""

    prompt_keys: Tensor
    """`[facts, d_ff]`: the same after bare prompts; K1 itself where keys are not averaged."""

    residuals: Tensor
    """R `[facts, d_model]`: what is to be added to the layer's output for each key."""

    neurons: Tensor
    """I `[neurons]`, ascending: the columns of W that may change."""

    kept: Tensor
    """C `[d_ff, d_ff]`: lambda E[kk^T] plus the history of earlier keys."""

    ordinary: Tensor
    """What is kept for each token of ordinary text `[d_ff, d_ff]`, whatever its weight in C: E[kk^T] where the recipe
    neither shrinks it nor keeps names."""

    @property
    def system(self) -> Tensor:
        """C on the chosen neurons, float64."""
        return self.kept.double()[self.neurons][:, self.neurons]


class Solve(Protocol):
    """Finds the change of W that writes what is wanted. It raises UserError where a number is not finite."""

    def __call__(self, writing: Writing) -> LowRank:
        """The change, in float32."""
        ...


@dataclass(frozen=True)
class LeastSquares:
    """MEMIT (Eq. 14 of arXiv 2210.07229): `R K1^T (C + ridge I + K1 K1^T)^-1`."""

    ridge: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the change's own squared Frobenius norm (ENCORE, arXiv 2502.01636: 10 to 20); 0 leaves it out."""

    def __call__(self, writing: Writing) -> LowRank:
        """Solve the normal equations."""
        kept = writing.kept
        if self.ridge:
            kept = kept + self.ridge * torch.eye(len(kept), dtype=kept.dtype, device=kept.device)
        return least_squares(kept, writing.keys, writing.residuals, writing.neurons)


@dataclass(frozen=True)
class Equality:
    """EMMET (arXiv 2403.14236): `R (K1^T C^-1 K1)^-1 K1^T C^-1`, so that `Delta K1 = R` exactly.

    For a single fact this is ROME's rank one (arXiv 2202.05262, Eq. 2): `(v - Wk) (C^-1 k)^T / (C^-1 k)^T k`.
    """

    slack: Annotated[float, Field(ge=0)] = 0.0
    """Added to the diagonal of `K1^T C^-1 K1` for batches of several facts, where keys are nearly dependent (0.1 in
    EMMET's code); the constraint then holds only nearly."""

    at: Literal["key", "prompt"] = "key"
    """Where it holds: at K1, or at the bare prompt's key, while the direction C^-1 k is still K1's (ROME's code)."""

    def __call__(self, writing: Writing) -> LowRank:
        """Solve for the Lagrange multipliers."""
        keys = writing.keys.double()[:, writing.neurons]
        held = keys if self.at == "key" else writing.prompt_keys.double()[:, writing.neurons]
        directions = positive_solve(writing.system, keys.T)
        crossed = held @ directions
        if self.slack and len(keys) > 1:
            crossed = crossed + self.slack * torch.eye(len(keys), dtype=crossed.dtype, device=crossed.device)
        right = torch.linalg.pinv(crossed.T) @ directions.T
        return _checked(writing.residuals, right, writing.neurons)


@dataclass(frozen=True)
class NullSpace:
    """AlphaEdit (arXiv 2410.02355): `R K1^T P (P (C + K1 K1^T) P + ridge I)^-1`.

    P projects onto the directions that keys of ordinary text hardly use: the eigenvectors of E[kk^T] whose eigenvalues
    are below the threshold. What W does with all other directions stays as it is. C holds the earlier keys only, if the
    recipe's `regularise` is 0 as in the paper.
    """

    threshold: Annotated[float, Field(gt=0)] = 0.02
    """Eigenvalues of E[kk^T] below this count as zero."""

    ridge: Annotated[float, Field(gt=0)] = 10.0
    """Weight of the change's own squared Frobenius norm."""

    def __call__(self, writing: Writing) -> LowRank:
        """Solve in a basis U of the null space: P = U U^T.

        Raises:
            UserError: no eigenvalue is below the threshold.
        """
        basis = self.basis(writing.ordinary, writing.neurons)
        keys = writing.keys.double()[:, writing.neurons] @ basis
        system = basis.T @ writing.system @ basis + keys.T @ keys
        system.diagonal().add_(self.ridge)
        return _checked(writing.residuals, (basis @ positive_solve(system, keys.T)).T, writing.neurons)

    def basis(self, ordinary: Tensor, neurons: Tensor) -> Tensor:
        """U `[neurons, directions]`, orthonormal.

        Raises:
            UserError: no eigenvalue is below the threshold.
        """
        values, vectors = torch.linalg.eigh(ordinary.double()[neurons][:, neurons])
        free = values < self.threshold
        if not free.any():
            raise UserError(
                f"solve.threshold={self.threshold:g}: ordinary keys use every direction, the least with an eigenvalue "
                f"of {float(values[0]):.2g} (median {float(values.median()):.2g}); set a higher threshold"
            )
        return vectors[:, free]


def _checked(residuals: Tensor, right: Tensor, neurons: Tensor) -> LowRank:
    if not (right.isfinite().all() and residuals.isfinite().all()):
        raise UserError("the update is not finite: the keys, their statistics or the targets hold NaN or infinity")
    return LowRank(residuals.float().T.contiguous(), right.float().contiguous(), neurons)

"""The closed form (Eq. 4, restricted to the selected neurons in Eq. 14)."""

from __future__ import annotations

import torch
from torch import Tensor

from ece.errors import UserError
from ece.models.overlay import LowRank


def least_squares(kept: Tensor, keys: Tensor, residuals: Tensor, neurons: Tensor) -> LowRank:
    """Eq. 14: `R K1^T (C + K1 K1^T)^-1` on the selected neurons, in float64.

    Facts are rows here, where the paper has columns.

    Args:
        kept: C `[d_ff, d_ff]`: lambda E[kk^T] plus the history of earlier keys.
        keys: K1 `[facts, d_ff]`.
        residuals: R `[facts, d_model]`: what the layer is to add to its output for each key.
        neurons: I `[neurons]`, ascending.

    Returns:
        Factors in float32 of rank `facts`: `left` is R, `right` is `K1 (C + K1 K1^T)^-1`.

    Raises:
        UserError: a number is not finite.
    """
    chosen = keys.double()[:, neurons]
    system = kept.double()[neurons][:, neurons] + chosen.T @ chosen
    right = positive_solve(system, chosen.T).T
    if not (right.isfinite().all() and residuals.isfinite().all()):
        raise UserError("the update is not finite: the keys, their statistics or the targets hold NaN or infinity")
    return LowRank(residuals.float().T.contiguous(), right.float().contiguous(), neurons)


def reduced(change: LowRank, keys: Tensor, rank: int) -> LowRank:
    """The best change of a lower rank: reduced-rank regression (Izenman 1975).

    With S = C + K1 K1^T, the loss of a change D exceeds that of the solved one by `|(D - Delta) S^(1/2)|^2`. It is
    least for Delta projected onto the first eigenvectors of `Delta S Delta^T`, which is `R (K1^T S^-1 K1) R^T`.

    Args:
        change: as it was solved, of rank `keys`.
        keys: K1 `[keys, d_ff]`.
        rank: how many columns to leave; a change with as few stays as it is.
    """
    if change.left.shape[1] <= rank:
        return change
    left, right = change.left.double(), change.right.double()
    explained = left @ (right @ keys.double()[:, change.neurons].T) @ left.T
    basis = torch.linalg.eigh(explained + explained.T)[1][:, -rank:]
    return LowRank(basis.float().contiguous(), (basis.T @ left @ right).float().contiguous(), change.neurons)


def shrunk(moment: Tensor, amount: float) -> Tensor:
    """A second moment `[n, n]` moved towards its own diagonal, in float64 (Ledoit and Wolf 2004).

    Args:
        moment: E[kk^T].
        amount: 0 leaves it as it is, 1 leaves the diagonal alone.
    """
    moment = moment.double()
    return torch.lerp(moment, moment.diagonal().diag(), amount)


def positive_solve(matrix: Tensor, right: Tensor) -> Tensor:
    """Solve `matrix @ x = right` for a symmetric, at least semi-definite matrix, however its rows are scaled.

    The matrix is first scaled to a unit diagonal, so that one neuron with huge activations does not drown the others;
    then Cholesky, with as little added to the diagonal as makes it succeed.

    Args:
        matrix: `[n, n]` float64.
        right: `[n, m]` float64.

    Raises:
        UserError: it is not, because numbers in it are not finite.
    """
    scale = matrix.diagonal().clamp_min(torch.finfo(matrix.dtype).tiny).rsqrt()
    unit = matrix * scale[:, None] * scale
    added = 0.0
    while True:
        factor, failed = torch.linalg.cholesky_ex(unit)
        if not failed:
            return torch.cholesky_solve(right * scale[:, None], factor) * scale[:, None]
        jitter = max(10 * added, 1e-14 * len(matrix))
        if not jitter < 1:
            raise UserError("the least-squares system is not positive definite: its keys or statistics are not finite")
        unit.diagonal().add_(jitter - added)
        added = jitter

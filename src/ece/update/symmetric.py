"""Symmetric matrices in half the memory."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Symmetric:
    """A symmetric matrix `[[A, B^T], [B, D]]` of which each number is kept once.

    A and D are about half as wide as the matrix; a triangle of each makes up one square.
    """

    diagonal: Tensor
    """A's, `[n // 2]`"""

    square: Tensor
    """`[n - n // 2, n - n // 2]`: D up to its diagonal, A above its own."""

    below: Tensor
    """B `[n - n // 2, n // 2]`"""

    @classmethod
    def of(cls, matrix: Tensor) -> Symmetric:
        """Keep a matrix `[n, n]`; what is above its diagonal is taken for what is below it."""
        half = len(matrix) // 2
        square = matrix[half:, half:].tril()
        square[:half, :half] += matrix[:half, :half].T.triu(1)
        return cls(matrix.diagonal()[:half].clone(), square, matrix[half:, :half].clone())

    def whole(self) -> Tensor:
        """The matrix `[n, n]`."""
        upper = self.square[: len(self.diagonal), : len(self.diagonal)].triu(1)
        return torch.cat(
            [
                torch.cat([upper + upper.T + self.diagonal.diag(), self.below.T], 1),
                torch.cat([self.below, self.square.tril() + self.square.tril(-1).T], 1),
            ]
        )

"""The two ends of a decoder: token ids to vectors, vectors to logits. Tied models hand both the same matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from headrace.kernels.before import Before
from headrace.weight.matrix import Matrix


class Embedding:
    """One row of the table per token, times a constant."""

    __slots__ = ("scale", "table")

    def __init__(self, table: Matrix, dtype: torch.dtype, scale: float = 1.0) -> None:
        self.table = table
        # Gemma was trained with the factor rounded to the weights' dtype: sqrt(3072) is 55.5 in bfloat16
        self.scale = torch.tensor(scale, dtype=torch.float64).to(dtype).item()

    def __call__(self, ids_T: Tensor) -> Tensor:
        """int64 [T] -> [T, D]."""
        x_TD = self.table.rows(ids_T)
        return x_TD if self.scale == 1.0 else x_TD * self.scale


class Head:
    """Logits: the dot product of a row with every row of the table."""

    __slots__ = ("matrix",)

    def __init__(self, matrix: Matrix) -> None:
        self.matrix = matrix

    def __call__(self, x_RD: Tensor, before: Before = None) -> Tensor:
        """[R, D] -> [R, V]."""
        return self.matrix.multiply(x_RD, before=before)

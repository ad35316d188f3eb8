"""The two ends of a decoder: token ids to vectors, vectors to logits. Tied models hand both the same tensor."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


class Embedding:
    """One row of the table per token, times a constant."""

    __slots__ = ("scale", "weight_VD")

    def __init__(self, weight_VD: Tensor, scale: float = 1.0) -> None:
        self.weight_VD = weight_VD
        # Gemma was trained with the factor rounded to the weights' dtype: sqrt(3072) is 55.5 in bfloat16
        self.scale = torch.tensor(scale, dtype=torch.float64).to(weight_VD.dtype).item()

    def __call__(self, ids_T: Tensor) -> Tensor:
        """int64 [T] -> [T, D]."""
        x_TD = F.embedding(ids_T, self.weight_VD)
        return x_TD if self.scale == 1.0 else x_TD * self.scale


class Head:
    """Logits: the dot product of a row with every row of the table."""

    __slots__ = ("weight_VD",)

    def __init__(self, weight_VD: Tensor) -> None:
        self.weight_VD = weight_VD

    def __call__(self, x_RD: Tensor) -> Tensor:
        """[R, D] -> [R, V], in the weights' dtype."""
        return F.linear(x_RD, self.weight_VD)

"""A matrix multiply with an optional bias. Anything called the same way may take its place.

Shape suffixes beside those of headrace/types.py: O outputs, I inputs.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


class Linear:
    """y = x W^T + b, weights as they are: no format, no packing."""

    __slots__ = ("bias_O", "weight_OI")

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None = None) -> None:
        self.weight_OI = weight_OI
        self.bias_O = bias_O

    def __call__(self, x_TI: Tensor) -> Tensor:
        """[T, I] -> [T, O], in the weights' dtype."""
        return F.linear(x_TI, self.weight_OI, self.bias_O)

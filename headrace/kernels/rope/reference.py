"""The obvious PyTorch twin of rope."""

from __future__ import annotations

import torch
from torch import Tensor


def rotate(x_TNH: Tensor, cos_LF: Tensor, sin_LF: Tensor, positions_T: Tensor) -> Tensor:
    """See the package; computed in the tables' dtype, returned in x's."""
    cos_T1F, sin_T1F = cos_LF[positions_T].unsqueeze(1), sin_LF[positions_T].unsqueeze(1)
    first, second = x_TNH.chunk(2, dim=-1)
    # products and sums stay apart: a fused one may round vector lanes and loop tails differently
    left, right = first * cos_T1F - second * sin_T1F, second * cos_T1F + first * sin_T1F
    return torch.cat((left, right), dim=-1).to(x_TNH.dtype)

"""rope: rotate every pair of dimensions of every head by the angle of its row's position.

    for each row t, head n, pair i < H / 2:                # pairs are (i, i + H/2), the Hugging Face convention
        c, s = cos[position_t, i], sin[position_t, i]
        x[t, n, i], x[t, n, i + H/2] = x[t, n, i] * c - x[t, n, i + H/2] * s,  x[t, n, i + H/2] * c + x[t, n, i] * s

Paper   https://arxiv.org/abs/2104.09864
"""

from __future__ import annotations

import torch
from torch import Tensor

from headrace import kernels
from headrace.kernels.rope import reference


def rotate(x_TNH: Tensor, cos_LF: Tensor, sin_LF: Tensor, positions_T: Tensor) -> Tensor:
    """[T, N, H] -> [T, N, H]: x itself, overwritten, or a new tensor. Rows of x may lie apart.

    Tables are float32 or float64; positions (int64) are below their length.
    """
    native = kernels.native("rope") if x_TNH.is_cpu and x_TNH.dtype == torch.float32 == cos_LF.dtype else None
    if native is None:
        return reference.rotate(x_TNH, cos_LF, sin_LF, positions_T)
    native(x_TNH, cos_LF, sin_LF, positions_T)
    return x_TNH

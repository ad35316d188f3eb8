"""argmax: where the largest value of each row is.

for each row x_V:                     # V vocabulary
    out = the first v with x_v = max(x_V); the first that is not a number, if there is one
"""

import torch
from torch import Tensor

from headrace import kernels
from headrace.kernels.argmax import reference

_NATIVE_DTYPES = (torch.float32, torch.bfloat16)


def argmax(x_RV: Tensor) -> Tensor:
    """[R, V] of any float dtype -> [R] int64. Rows of x may lie apart. Raises ValueError for rows of no values."""
    if x_RV.shape[1] == 0:
        raise ValueError("rows of x must have at least one value")
    native = kernels.native("argmax") if x_RV.is_cpu and x_RV.dtype in _NATIVE_DTYPES else None
    if native is None:
        return reference.argmax(x_RV)
    x_RV = x_RV if x_RV.stride(1) == 1 else x_RV.contiguous()
    out_R = torch.empty(len(x_RV), dtype=torch.int64)
    native(x_RV, out_R)
    return out_R

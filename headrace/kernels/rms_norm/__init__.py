"""rms_norm: divide each row by its root mean square, then multiply by a weight.

    for each row x_D:                     # D model width
        scale = 1 / sqrt(mean(x_D * x_D) + eps)
        out_D = x_D * scale * (weight_D + weight_offset)

The arithmetic is float32 (float64 for float64 input) and the result is rounded once, to the dtype of `x`. In half
precision the original model codes differ here: Llama's rounds before it multiplies by the weight, Gemma's after, as
is done here; in float32 the two agree. Gemma multiplies by 1 + weight: `weight_offset=1.0`.

Each row is reduced in one order that depends on D alone, so a row has the same bits whatever rows are beside it; the
native levels agree with each other bit for bit as well.
"""

import torch
from torch import Tensor

from headrace import kernels
from headrace.kernels.rms_norm import reference

_NATIVE_DTYPES = (torch.float32, torch.bfloat16)


def rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-6, *, weight_offset: float = 0.0) -> Tensor:
    """Return `x` [..., D] with every row normalised, scaled by `weight` [D]; same shape and dtype, contiguous.

    `weight` has the dtype and device of `x`. Raises ValueError where shapes or dtypes do not fit.
    """
    native = kernels.native("rms_norm") if x.is_cpu and x.dtype in _NATIVE_DTYPES else None
    if native is None:
        _check(x, weight)
        return reference.rms_norm(x, weight, eps, weight_offset)
    x = x.contiguous()
    out = torch.empty_like(x)
    native(x, weight, out, eps, weight_offset)
    return out


def _check(x: Tensor, weight: Tensor) -> None:
    if x.ndim < 1 or x.shape[-1] == 0:
        raise ValueError("x must have rows of at least one value")
    if weight.shape != x.shape[-1:]:
        raise ValueError(f"weight has shape {tuple(weight.shape)}, rows of x have {x.shape[-1]} values")
    if weight.dtype != x.dtype:
        raise ValueError(f"weight is {weight.dtype}, x is {x.dtype}")

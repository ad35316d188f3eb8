"""mask: a row of logits without the tokens that may not come next.

    out_v = x_v if bit v of the mask is set, else -inf      # bit v: bit v % 8 of byte v // 8, lowest first

Whatever a forbidden token's logit was, NaN included. The row itself is left as it is.
"""

from __future__ import annotations

import torch
from torch import Tensor

from headrace import kernels
from headrace.kernels.mask import reference

_NATIVE_DTYPES = (torch.float32, torch.bfloat16)


def mask(logits_V: Tensor, bits: Tensor) -> Tensor:
    """[V] of any float dtype -> [V], float32 or wider, in memory of its own. bits: uint8, at least a bit for each.

    Raises ValueError for too few bits.
    """
    if 8 * len(bits) < len(logits_V):
        raise ValueError(f"a mask of {8 * len(bits)} bits for {len(logits_V)} logits")
    native = kernels.native("mask") if logits_V.is_cpu and logits_V.dtype in _NATIVE_DTYPES else None
    if native is None:
        return reference.mask(logits_V, bits)
    out_V = torch.empty(len(logits_V))
    native(logits_V.contiguous(), bits, out_V)
    return out_V

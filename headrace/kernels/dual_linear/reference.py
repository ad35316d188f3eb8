"""The obvious PyTorch twin of dual_linear: round twice, multiply in whole numbers, scale once."""

from __future__ import annotations

import torch
from torch import Tensor

from headrace.kernels.dual_linear.layout import DualWeight, Parts
from headrace.kernels.int_linear.layout import Rows, pad
from headrace.kernels.int_linear.reference import NOT_FINITE

MOST_W8 = 119
_LEAST_SCALE = 2.0**-126  # whose inverse is finite


def round_to_nearest(rows_OI: Tensor, group: int) -> Parts:
    """Floats [O, I] -> codes, steps, zero points and scales."""
    if not torch.isfinite(rows_OI).all():
        raise ValueError(NOT_FINITE)
    width = rows_OI.shape[1]
    scale_O1 = rows_OI.float().abs().amax(-1, keepdim=True) / MOST_W8
    scale_O1 = torch.where(scale_O1 < _LEAST_SCALE, 0, scale_O1)
    factor_O1 = torch.where(scale_O1 > 0, 1 / scale_O1, 0)
    w8_OGI = pad((rows_OI.float() * factor_O1).round(), min(group, width)).unflatten(
        1, (-1, min(group, width))
    )
    assert w8_OGI.abs().max() <= MOST_W8
    low_OG1 = w8_OGI.amin(-1, keepdim=True).clamp(max=0)
    high_OG1 = w8_OGI.amax(-1, keepdim=True).clamp(min=0)
    step_OG1 = ((high_OG1 - low_OG1) / 15).round().clamp(min=1)
    factor_OG1 = 1 / step_OG1
    zero_OG1 = (-low_OG1 * factor_OG1).round().clamp(max=15)
    codes_OGI = ((w8_OGI * factor_OG1).round() + zero_OG1).clamp(0, 15)
    return Parts(
        codes_OGI.flatten(1)[:, :width].contiguous().to(torch.uint8),
        step_OG1.squeeze(-1).to(torch.uint8),
        zero_OG1.squeeze(-1).to(torch.uint8),
        scale_O1.squeeze(-1),
    )


def multiply(rows: Rows, weight: DualWeight) -> Tensor:
    """[T, I] x [O, I] -> [T, O]: the exact whole number (float64 holds it), then the two scales in float32."""
    sums_TO = rows.codes_TI[:, : weight.width].double() @ weight.w8().double().T
    return sums_TO.float() * weight.unpack().scales_O * rows.scales_T[:, None]


def outputs(weight: DualWeight, ids_T: Tensor) -> Tensor:
    """Rows of the weight in float32: [T, I]."""
    return weight.dequantise()[ids_T]

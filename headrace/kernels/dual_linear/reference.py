"""The obvious PyTorch twin of dual_linear: round twice, multiply in whole numbers, scale once."""

from __future__ import annotations

import torch
from torch import Tensor

from headrace.kernels.dual_linear.layout import MOST_W8, DualWeight, Parts
from headrace.kernels.int_linear.layout import Rows, pad
from headrace.kernels.int_linear.reference import NOT_FINITE

_LEAST_SCALE = 2.0**-126  # whose inverse is finite


def round_to_nearest(rows_OI: Tensor, group: int, bits: int) -> Parts:
    """Floats [O, I] -> codes, steps, zero points and scales."""
    width = rows_OI.shape[1]
    scale_O1 = fit_rows(rows_OI, bits)
    w8_OI = to_bytes(rows_OI.float(), scale_O1, bits)
    w8_OGI = pad(w8_OI, min(group, width)).unflatten(1, (-1, min(group, width)))
    step_OG1, zero_OG1 = fit_groups(w8_OGI, bits)
    codes_OGI = encode(w8_OGI, step_OG1, zero_OG1, bits)
    return Parts(
        codes_OGI.flatten(1)[:, :width].contiguous(),
        step_OG1.squeeze(-1).to(torch.uint8),
        zero_OG1.squeeze(-1).to(torch.uint8),
        scale_O1.squeeze(-1),
    )


def fit_rows(rows_OI: Tensor, bits: int) -> Tensor:
    """Each output's scale, float32 [O, 1]."""
    if not torch.isfinite(rows_OI).all():
        raise ValueError(NOT_FINITE)
    scale_O1 = rows_OI.float().abs().amax(-1, keepdim=True) / MOST_W8[bits]
    return torch.where(scale_O1 < _LEAST_SCALE, 0, scale_O1)


def to_bytes(rows_OC: Tensor, scale_O1: Tensor, bits: int) -> Tensor:
    """Weights in units of their output's scale, rounded, as floats, and held where these bits end."""
    factor_O1 = torch.where(scale_O1 > 0, 1 / scale_O1, 0)
    return (rows_OC * factor_O1).round().clamp(-MOST_W8[bits], MOST_W8[bits])


def fit_groups(w8_OGI: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Groups of such units -> steps and zero points, as floats: [O, G, 1] each."""
    top = (1 << bits) - 1
    low_OG1 = w8_OGI.amin(-1, keepdim=True).clamp(max=0)
    high_OG1 = w8_OGI.amax(-1, keepdim=True).clamp(min=0)
    step_OG1 = ((high_OG1 - low_OG1) / top).round().clamp(min=1)
    return step_OG1, (-low_OG1 * (1 / step_OG1)).round().clamp(max=top)


def encode(w8: Tensor, steps: Tensor, zeros: Tensor, bits: int) -> Tensor:
    """The nearest codes, uint8; steps and zero points broadcast."""
    return ((w8 * (1 / steps)).round() + zeros).clamp(0, (1 << bits) - 1).to(torch.uint8)


def multiply(rows: Rows, weight: DualWeight) -> Tensor:
    """[T, I] x [O, I] -> [T, O]: the exact whole number (float64 holds it), then the two scales in float32."""
    sums_TO = rows.codes_TI[:, : weight.width].double() @ weight.w8().double().T
    return sums_TO.float() * weight.unpack().scales_O * rows.scales_T[:, None]


def outputs(weight: DualWeight, ids_T: Tensor) -> Tensor:
    """Rows of the weight in float32: [T, I]."""
    return weight.dequantise()[ids_T]

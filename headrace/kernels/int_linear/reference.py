"""The obvious PyTorch twin of int_linear: pack, quantise, multiply, one step after the other."""

from __future__ import annotations

import torch
from torch import Tensor

from headrace.kernels.int_linear.layout import CHUNK, IntWeight, Rows, pad

LEAST = 127.0 / torch.finfo(torch.float32).max
NOT_FINITE = "some weights are infinite or not a number: the checkpoint is damaged, download it again"
TOO_LARGE = (
    "some weights are too large: the scale of their codes is beyond float16's 65504; store them in bf16"
)


def round_to_nearest(
    rows_OI: Tensor, group: int, bits: int, asymmetric: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Floats [O, I] -> codes uint8 [O, I], scales float16 [O, G], zero points uint8 [O, G] or None."""
    width = rows_OI.shape[1]
    parts_OGI = pad(rows_OI.float(), min(group, width)).unflatten(1, (-1, min(group, width)))
    scale_OG1, zero_OG1 = fit(parts_OGI, bits, asymmetric)
    codes_OGI = encode(parts_OGI, scale_OG1, zero_OG1, bits)
    zeros_OG = zero_OG1.squeeze(-1).to(torch.uint8) if asymmetric else None
    return codes_OGI.flatten(1)[:, :width].contiguous(), scale_OG1.squeeze(-1), zeros_OG


def fit(parts_OGI: Tensor, bits: int, asymmetric: bool) -> tuple[Tensor, Tensor]:
    """Groups of weights, float32 -> their scales, float16, and zero points, float32: [O, G, 1] each."""
    top, middle = (1 << bits) - 1, 1 << (bits - 1)
    if not torch.isfinite(parts_OGI).all():
        raise ValueError(NOT_FINITE)
    low_OG1 = parts_OGI.amin(-1, keepdim=True).clamp(max=0)
    high_OG1 = parts_OGI.amax(-1, keepdim=True).clamp(min=0)
    extreme_OG1 = torch.where(high_OG1 > -low_OG1, high_OG1, low_OG1)
    scale_OG1 = ((high_OG1 - low_OG1) / top if asymmetric else extreme_OG1 / -middle).half()
    if not torch.isfinite(scale_OG1).all():
        raise ValueError(TOO_LARGE)
    scale_OG1 = torch.where(scale_OG1 != 0, scale_OG1, 0)  # no minus zero
    zero_OG1 = torch.full_like(low_OG1, middle)
    if asymmetric:
        zero_OG1 = (-low_OG1 * _inverse(scale_OG1)).round().clamp(max=top)
    return scale_OG1, zero_OG1


def encode(weights: Tensor, scales: Tensor, zeros: Tensor, bits: int) -> Tensor:
    """float32 weights -> the nearest codes, uint8; scales and zero points broadcast."""
    return ((weights * _inverse(scales)).round() + zeros).clamp(0, (1 << bits) - 1).to(torch.uint8)


def _inverse(scales: Tensor) -> Tensor:
    return torch.where(scales != 0, 1 / scales.float(), 0)


def quantise(x_TI: Tensor, group: int) -> Rows:
    """Symmetric 8-bit codes with one scale per row; sums of codes per group. Where 1 / scale overflows, codes are 0."""
    most_T1 = x_TI.abs().amax(-1, keepdim=True)
    # One rounding: a number divided by a tensor is multiplied by its reciprocal, which rounds twice.
    factor_T1 = torch.where(most_T1 > LEAST, torch.full_like(most_T1, 127.0) / most_T1, 0.0)
    codes_TI = pad((x_TI * factor_T1).round().clamp(-127, 127), CHUNK)
    sums_TG = torch.stack([part.sum(-1) for part in codes_TI.split(group, dim=-1)], dim=-1)
    return Rows(codes_TI.to(torch.int8), most_T1.squeeze(-1) / 127.0, sums_TG.to(torch.int32))


def multiply(rows: Rows, weight: IntWeight) -> Tensor:
    """[T, I] x [O, I] -> [T, O]: exact integer products per group, then scale by scale in float32."""
    codes_OI, scales_OG, zeros_OG = weight.unpack()
    total_TO = torch.zeros(len(rows.scales_T), weight.outputs)
    for g, (codes, inputs) in enumerate(
        zip(
            codes_OI.split(weight.group, -1),
            rows.codes_TI[:, : weight.width].split(weight.group, -1),
            strict=True,
        )
    ):
        centred = codes.double() - zeros_OG[:, g : g + 1]
        total_TO += (inputs.double() @ centred.T).float() * scales_OG[:, g].float()
    return total_TO * rows.scales_T[:, None]


def outputs(weight: IntWeight, ids_T: Tensor) -> Tensor:
    """Rows of the weight in float32: [T, I]."""
    return weight.dequantise()[ids_T]

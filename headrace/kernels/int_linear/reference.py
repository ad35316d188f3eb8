"""The obvious PyTorch twin of int_linear: pack, quantise, multiply, one step after the other."""

from __future__ import annotations

import torch
from torch import Tensor

from headrace.kernels.int_linear.layout import CHUNK, IntWeight, Rows, pad

NOT_FINITE = "some weights are infinite or not a number: the checkpoint is damaged, download it again"
TOO_LARGE = (
    "some weights are too large: the scale of their codes is beyond float16's 65504; store them in bf16"
)
LEAST = 2.0**-119
"""A row whose largest magnitude is below has codes of 0: 127 times its inverse would be infinite."""


def round_to_nearest(
    rows_OI: Tensor, group: int, bits: int, asymmetric: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Floats [O, I] -> codes uint8 [O, I], scales float16 [O, G], zero points uint8 [O, G] or None."""
    width, top, middle = rows_OI.shape[1], (1 << bits) - 1, 1 << (bits - 1)
    parts_OGI = pad(rows_OI.float(), min(group, width)).unflatten(1, (-1, min(group, width)))
    if not torch.isfinite(parts_OGI).all():
        raise ValueError(NOT_FINITE)
    low_OG1 = parts_OGI.amin(-1, keepdim=True).clamp(max=0)
    high_OG1 = parts_OGI.amax(-1, keepdim=True).clamp(min=0)
    extreme_OG1 = torch.where(high_OG1 > -low_OG1, high_OG1, low_OG1)
    scale_OG1 = ((high_OG1 - low_OG1) / top if asymmetric else extreme_OG1 / -middle).half()
    if not torch.isfinite(scale_OG1).all():
        raise ValueError(TOO_LARGE)
    scale_OG1 = torch.where(scale_OG1 != 0, scale_OG1, 0)  # no minus zero
    factor_OG1 = torch.where(scale_OG1 != 0, 1 / scale_OG1.float(), 0)
    zero_OG1 = torch.full_like(low_OG1, middle)
    if asymmetric:
        zero_OG1 = (-low_OG1 * factor_OG1).round().clamp(max=top)
    codes_OGI = ((parts_OGI * factor_OG1).round() + zero_OG1).clamp(0, top).to(torch.uint8)
    zeros_OG = zero_OG1.squeeze(-1).to(torch.uint8) if asymmetric else None
    return codes_OGI.flatten(1)[:, :width].contiguous(), scale_OG1.squeeze(-1), zeros_OG


def quantise(x_TI: Tensor, group: int) -> Rows:
    """Symmetric 8-bit codes with one scale per row; sums of codes per group."""
    most_T1 = x_TI.abs().amax(-1, keepdim=True)
    top = torch.tensor(
        127.0
    )  # PyTorch takes number / tensor for a product with the inverse, which rounds twice
    factor_T1 = torch.where(most_T1 >= LEAST, top / most_T1, 0.0)
    codes_TI = pad((x_TI * factor_T1).round().clamp(-128, 127), CHUNK)
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

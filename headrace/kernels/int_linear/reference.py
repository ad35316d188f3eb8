"""The obvious PyTorch twin of int_linear: pack, quantise, multiply, one step after the other."""

from __future__ import annotations

import torch
from torch import Tensor

from headrace.kernels.int_linear.layout import CHUNK, IntWeight, Rows, pad


def quantise(x_TI: Tensor, group: int) -> Rows:
    """Symmetric 8-bit codes with one scale per row; sums of codes per group."""
    most_T1 = x_TI.abs().amax(-1, keepdim=True)
    factor_T1 = torch.where(most_T1 > 0, 127.0 / most_T1, 0.0)
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

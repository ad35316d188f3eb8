"""The obvious PyTorch twin of lut_linear: round, tabulate, look up plane by plane."""

from __future__ import annotations

import torch
from torch import Tensor

from headrace.kernels.int_linear.layout import CHUNK, pad
from headrace.kernels.int_linear.reference import NOT_FINITE, TOO_LARGE
from headrace.kernels.int_linear.reference import encode as encode_codes
from headrace.kernels.int_linear.reference import fit as fit_codes
from headrace.kernels.lut_linear.layout import LutWeight, Tables

MOST_ENTRY = 63.0
LEAST = MOST_ENTRY / torch.finfo(torch.float32).max
LANES = 16
"""Sums of floats go lane by lane, and then over the lanes in halves."""
NEARLY = 2.0**-6
"""What a ternary weight may be off, as a share of the largest."""


def round_to_nearest(rows_OI: Tensor, group: int, bits: int) -> tuple[Tensor, Tensor]:
    """Floats [O, I] -> codes uint8 [O, I], scales float16 [O, G]."""
    width = rows_OI.shape[1]
    group = min(group, width)
    rows_OI = rows_OI.float()
    scales_OG = fit(rows_OI, group, bits)
    scale_OI = scales_OG.repeat_interleave(group, -1)[:, :width]
    return encode(rows_OI, scale_OI, bits), scales_OG


def fit(rows_OI: Tensor, group: int, bits: int) -> Tensor:
    """Scales of float32 weights, float16 [O, G]; the last group may be shorter."""
    if not torch.isfinite(rows_OI).all():
        raise ValueError(NOT_FINITE)
    parts_OGI = pad(rows_OI, group).unflatten(1, (-1, group))
    if bits == 1:
        scales_OG = _binary(parts_OGI, rows_OI.shape[1])
    else:
        scales_OG = fit_codes(parts_OGI, bits, asymmetric=False)[0].squeeze(-1)
        if bits == 2:
            scales_OG = _ternary(parts_OGI, scales_OG)
    if not torch.isfinite(scales_OG).all():
        raise ValueError(TOO_LARGE)
    return scales_OG


def encode(weights: Tensor, scales: Tensor, bits: int) -> Tensor:
    """float32 weights -> the nearest codes, uint8, for scales of the same shape."""
    if bits == 1:
        return (weights >= 0).to(torch.uint8)
    return encode_codes(weights, scales, torch.full((), 1 << (bits - 1)), bits)


def _binary(parts_OGI: Tensor, width: int) -> Tensor:
    """Twice the mean magnitude."""
    groups, group = parts_OGI.shape[1:]
    lanes_OGNL = pad(parts_OGI.abs(), LANES).unflatten(-1, (-1, LANES))
    total_OGL = torch.zeros_like(lanes_OGNL[:, :, 0])
    for part_OGL in lanes_OGNL.unbind(2):
        total_OGL = total_OGL + part_OGL
    while total_OGL.shape[-1] > 1:
        half = total_OGL.shape[-1] // 2
        total_OGL = total_OGL[..., :half] + total_OGL[..., half:]
    count_G = torch.full((groups,), float(group))
    count_G[-1] = width - (groups - 1) * group
    return (2 * (total_OGL.squeeze(-1) / count_G)).half()


def _ternary(parts_OGI: Tensor, scales_OG: Tensor) -> Tensor:
    """Scales again, where a group is nothing but a number, its negative and 0."""
    size_OGI = parts_OGI.abs()
    most_OG = size_OGI.amax(-1)
    error_OG = torch.minimum(size_OGI, most_OG[..., None] - size_OGI).amax(-1)
    found_OG = (error_OG <= most_OG * NEARLY) & (scales_OG != 0)
    return torch.where(found_OG, most_OG.half(), scales_OG)


def tabulate(x_TI: Tensor, group: int) -> Tables:
    """Where 63 over the largest sum of a group overflows, its entries are 0."""
    x_TJ4 = pad(x_TI, CHUNK).unflatten(1, (-1, 4))
    sign_E4 = 2.0 * (torch.arange(16)[:, None] >> torch.arange(4) & 1) - 1
    sums_TJE = _four(x_TJ4[:, :, None] * sign_E4)
    quads = -(-min(group, x_TI.shape[1]) // CHUNK) * CHUNK // 4
    parts, scales, sums = [], [], []
    for sums_TQE in sums_TJE.split(quads, 1):
        most_T11 = sums_TQE.amax((1, 2), keepdim=True)
        factor_T11 = torch.where(most_T11 > LEAST, torch.full_like(most_T11, MOST_ENTRY) / most_T11, 0.0)
        parts.append((sums_TQE * factor_T11).round().clamp(-MOST_ENTRY, MOST_ENTRY))
        scales.append(most_T11[:, 0, 0] / MOST_ENTRY)
        sums.append(parts[-1][..., 15].sum(-1))
    return Tables(
        torch.cat(parts, 1).to(torch.int16), torch.stack(scales, -1), torch.stack(sums, -1).to(torch.int32)
    )


def _four(x: Tensor) -> Tensor:
    """Sums over the last axis, of four: pairs first."""
    return (x[..., 0] + x[..., 1]) + (x[..., 2] + x[..., 3])


def multiply(tables: Tables, weight: LutWeight) -> Tensor:
    """[T, I] x [O, I] -> [T, O]: whole numbers per group, looked up; then scale by scale in float32."""
    codes_OI, scales_OG = weight.unpack()
    total_TO = torch.zeros(len(tables.scales_TG), weight.outputs)
    start = 0
    for g, codes in enumerate(codes_OI.split(weight.group, -1)):
        quads_OJ4 = pad(codes, CHUNK).int().unflatten(1, (-1, 4))
        number = quads_OJ4.shape[1]
        entries_TJE = tables.entries_TJE[:, start : start + number].int()
        start += number
        sums_TO = torch.zeros(len(total_TO), weight.outputs, dtype=torch.int64)
        for b in range(weight.bits):
            index_OJ = ((quads_OJ4 >> b & 1) << torch.arange(4)).sum(-1)
            sums_TO += entries_TJE[:, torch.arange(number), index_OJ].sum(-1) << b
        if weight.bits > 1:
            sums_TO -= tables.sums_TG[:, g, None]
        scale_TO = scales_OG[:, g].float() * (0.5 * tables.scales_TG[:, g, None])
        total_TO += sums_TO.float() * scale_TO
    return total_TO


def outputs(weight: LutWeight, ids_T: Tensor) -> Tensor:
    """Rows of the weight in float32: [T, I]."""
    return weight.dequantise()[ids_T]

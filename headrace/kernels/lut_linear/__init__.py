"""lut_linear: rows times weights of 1 to 4 bit planes, by looking up sums of activations.

    x_TI = before(x)                                       # a norm, a gate, or nothing
    for each row t, group g of inputs, and four neighbours j of them:
        sum_tje = +-x_0 +-x_1 +-x_2 +-x_3 for the 16 choices e of signs      # (first + second) + (third + fourth)
        scale_tg = max of them over the group / 63;    entry_tje = round(sum_tje / scale_tg)
    for each output o:
        for each group, in order:
            n = sum over planes b:  2^b * sum over quads j:  entry_tj[bits of plane b]     # (2 code - 2^bits + 1) * a
            n = n - sum over quads j: entry_tj[15], unless there is but one plane          # 2 (code - 2^(bits-1)) * a
            y_to += n / 2 * scale_og * scale_tg
        out_to = y_to  (+ bias_o)  (+ add_to)

A plane costs the same whatever it stands for, so time is linear in bits. Sums inside a group are integers, exact in any
order; the sum over groups goes in their order with one rounding each. A row therefore has the same bits whatever rows
are beside it, on every native level and with any number of threads.

Several rows share what is unpacked of the weights: up to four at a time, and 128 whose tables are in memory together.

Paper   https://arxiv.org/abs/2407.00088 (T-MAC); https://arxiv.org/abs/2408.06003 (LUT Tensor Core: codes symmetric
        about 0, tables of few bits)
"""

from __future__ import annotations

import torch
from torch import Tensor

from headrace import kernels
from headrace.kernels import after
from headrace.kernels.before import Before, apply, native_before
from headrace.kernels.int_linear.layout import CHUNK
from headrace.kernels.lut_linear import layout, reference
from headrace.kernels.lut_linear.layout import LutWeight, Tables

__all__ = ["LutWeight", "Tables", "lut_linear", "outputs", "pack", "round_and_pack", "tabulate", "wide"]


def lut_linear(
    x: Tensor,
    weight: LutWeight,
    bias_O: Tensor | None = None,
    *,
    before: Before = None,
    add_TO: Tensor | None = None,
    out_TO: Tensor | None = None,
) -> Tensor:
    """[T, I] float32 (twice as wide before a gate) -> [T, O] float32. `out_TO` may be `add_TO`; it is returned.

    Rows of x need not follow each other. Raises ValueError where shapes or dtypes do not fit.
    """
    native = kernels.native("lut_linear")
    if native is None:
        y_TO = reference.multiply(reference.tabulate(apply(before, x), weight.group), weight)
        return after.apply(y_TO, bias_O, add_TO, out_TO)
    out = torch.empty(x.shape[0], weight.outputs) if out_TO is None else out_TO
    w = weight
    native(
        x, w.packed, w.outputs, w.width, w.group, w.bits, w.wide, out, bias_O, add_TO, *native_before(before)
    )
    return out


def wide() -> bool:
    """Whether the level in use packs planes in the wide order, and multiplies no other. See kernel.h."""
    native = kernels.native("lut_linear_wide")
    return native is not None and bool(native())


def tabulate(x_TI: Tensor, group: int, before: Before = None) -> Tables:
    """The tables that a product with a weight of these groups looks up in."""
    native = kernels.native("lut_linear_tables")
    if native is None:
        return reference.tabulate(apply(before, x_TI), group)
    count, width = x_TI.shape[0], x_TI.shape[1] // (2 if isinstance(before, str) else 1)
    groups = -(-width // min(group, width))
    entries = torch.empty(count, -(-width // CHUNK) * CHUNK // 4, 16, dtype=torch.uint8)
    scales, sums = torch.empty(count, groups), torch.empty(count, groups, dtype=torch.int32)
    native(x_TI, group, entries, scales, sums, *native_before(before))
    return Tables(entries.short() - 64, scales, sums)


def pack(
    codes_OI: Tensor, scales_OG: Tensor, *, group: int, bits: int, into: Tensor | None = None
) -> LutWeight:
    """Codes (uint8) with their scales (float16) as a weight; its bytes are `into` if given."""
    count, width = codes_OI.shape
    group = min(group, width)
    if into is None:
        into = torch.empty(layout.packed_bytes(count, width, group, bits), dtype=torch.uint8)
    native = kernels.native("lut_linear_pack")
    if native is None:
        into.copy_(layout.pack(codes_OI, scales_OG, group, bits))
    else:
        native(codes_OI, scales_OG, group, bits, into)
    return LutWeight(into, count, width, group, bits, wide())


def round_and_pack(rows_OI: Tensor, *, group: int, bits: int, into: Tensor | None = None) -> LutWeight:
    """Weights (float32, bfloat16 or float16, contiguous) rounded to nearest; the bytes are `into` if given.

    For each output and group of inputs, in float32, one rounding per operation:

        2 to 4 bits   as headrace.kernels.int_linear.round_and_pack does without zero points
        2 bits        scale = float16(most) where no weight is further than most / 64 from -most, 0 or most, most being
                      the largest magnitude: codes 1, 2 and 3 then are what a ternary model was trained with
        1 bit         scale = float16(2 * mean magnitude); code = weight >= 0: the nearest pair of a number and its
                      negative. Magnitudes are added up in 16 lanes, and these in halves: 8, 4, 2, 1.

    All levels and the reference give the same codes and scales. Raises ValueError for weights that are infinite or not
    a number, and for scales beyond float16.
    """
    count, width = rows_OI.shape
    group = min(group, width)
    if into is None:
        into = torch.empty(layout.packed_bytes(count, width, group, bits), dtype=torch.uint8)
    native = kernels.native("lut_linear_round_and_pack")
    if native is None:
        into.copy_(layout.pack(*reference.round_to_nearest(rows_OI, group, bits), group, bits))
    else:
        native(rows_OI, group, bits, into)
    return LutWeight(into, count, width, group, bits, wide())


def outputs(weight: LutWeight, ids_T: Tensor) -> Tensor:
    """Rows `ids_T` (int64) of the weight matrix, in float32: what an embedding looks up. [T, I]."""
    native = kernels.native("lut_linear_outputs")
    if native is None:
        return reference.outputs(weight, ids_T)
    out_TI = torch.empty(len(ids_T), weight.width)
    w = weight
    native(w.packed, w.outputs, w.width, w.group, w.bits, w.wide, ids_T, out_TI)
    return out_TI

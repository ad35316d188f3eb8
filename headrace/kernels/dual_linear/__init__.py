"""dual_linear: rows times 3- or 4-bit weights whose groups have whole-numbered steps, with 8-bit activations.

    x_TI = before(x)                                       # a norm, a gate, or nothing
    for each row t:
        scale_t = max_i |x_ti| / 127;   a_ti = round(x_ti / scale_t)
        for each output o:
            sum_to = sum over groups g:  step_og * sum_{i in g} (code_oi - zero_og) * a_ti      # all integers
            out_to = sum_to * scale_o * scale_t  (+ bias_o)  (+ add_to)

Everything up to the two scales is an integer, and w8 = step * (code - zero) a signed byte: |sum| <= 128 * 127 * width,
below 2^31 for the widths that are taken, so no sum overflows, and results do not depend on the order of anything.

Paper   https://arxiv.org/abs/2405.04532 (QServe: progressive group quantization); https://arxiv.org/abs/2310.04836
        (DGQ: dual grained quantization)
"""

from __future__ import annotations

import torch
from torch import Tensor

from headrace import kernels
from headrace.kernels import after
from headrace.kernels.before import Before, apply, native_before
from headrace.kernels.dual_linear import layout, reference
from headrace.kernels.dual_linear.layout import DualWeight, Parts
from headrace.kernels.int_linear.reference import quantise

__all__ = ["DualWeight", "Parts", "dual_linear", "outputs", "pack", "round_and_pack"]

FEW = 8
"""Rows up to which codes are unpacked in registers, for some rows at a time; more share a panel."""


def dual_linear(
    x: Tensor,
    weight: DualWeight,
    bias_O: Tensor | None = None,
    *,
    before: Before = None,
    add_TO: Tensor | None = None,
    out_TO: Tensor | None = None,
) -> Tensor:
    """[T, I] float32 (twice as wide before a gate) -> [T, O] float32. `out_TO` may be `add_TO`; it is returned.

    Rows of x need not follow each other. Raises ValueError where shapes or dtypes do not fit.
    """
    native = kernels.native("dual_linear")
    if native is None:
        y_TO = reference.multiply(quantise(apply(before, x), weight.group), weight)
        return after.apply(y_TO, bias_O, add_TO, out_TO)
    out = torch.empty(x.shape[0], weight.outputs) if out_TO is None else out_TO
    w = weight
    native(x, w.packed, w.outputs, w.width, w.group, w.bits, FEW, out, bias_O, add_TO, *native_before(before))
    return out


def pack(parts: Parts, *, group: int, bits: int) -> DualWeight:
    """Codes, steps, zero points and scales that somebody chose, as a weight. Raises ValueError for others."""
    count, width = parts.codes_OI.shape
    return DualWeight(layout.pack(parts, group, bits), count, width, min(group, width), bits)


def round_and_pack(rows_OI: Tensor, *, group: int, bits: int, into: Tensor | None = None) -> DualWeight:
    """Weights (float32, bfloat16 or float16, contiguous) rounded to nearest; the bytes are `into` if given.

    In float32, one rounding per operation, halves to the even neighbour. For each output:

        scale   = greatest |weight| / most, or 0 where that is below 2^-126
        w8      = round(weight * (1 / scale)), or 0 where the scale is

    and for each of its groups of inputs:

        low, high = min(0, least w8), max(0, greatest w8)
        step    = max(1, round((high - low) / top));   factor = 1 / step
        zero    = min(round(-low * factor), top)
        code    = clamp(round(w8 * factor) + zero, 0, top)

    With 4 bits top is 15 and most is 119, with 3 bits 7 and 111. That leaves the result within a signed byte: step is
    at most round(238 / 15) = 16, or round(222 / 7) = 32, so rounding w8 to a multiple of it gives at most
    119 + 16 / 2 = 127, or 111 + 32 / 2 = 127, and clamping only brings it nearer to 0.

    All levels and the reference give the same bytes. Raises ValueError for weights that are infinite or not a number.
    """
    count, width = rows_OI.shape
    group = min(group, width)
    if into is None:
        into = torch.empty(layout.packed_bytes(count, width, group, bits), dtype=torch.uint8)
    native = kernels.native("dual_linear_round_and_pack")
    if native is None:
        into.copy_(layout.pack(reference.round_to_nearest(rows_OI, group, bits), group, bits))
    else:
        native(rows_OI, group, bits, into)
    return DualWeight(into, count, width, group, bits)


def outputs(weight: DualWeight, ids_T: Tensor) -> Tensor:
    """Rows `ids_T` (int64) of the weight matrix, in float32: what an embedding looks up. [T, I]."""
    native = kernels.native("dual_linear_outputs")
    if native is None:
        return reference.outputs(weight, ids_T)
    out_TI = torch.empty(len(ids_T), weight.width)
    native(weight.packed, weight.outputs, weight.width, weight.group, weight.bits, ids_T, out_TI)
    return out_TI

"""int_linear: rows times a weight matrix of 1- to 8-bit integer codes, with 8-bit activations.

    x_TI = before(x)                                       # a norm, a gate, or nothing
    for each row t:
        scale_t = max_i |x_ti| / 127;   a_ti = round(x_ti / scale_t)
        for each output o:
            y_to = sum over groups g, in order:  scale_og * sum_{i in g} (code_oi - zero_og) * a_ti
            out_to = y_to * scale_t  (+ bias_o)  (+ add_to)

The sums inside a group are integers, so they are exact in any order; the sum over groups goes in their order with one
rounding each. A row therefore has the same bits whatever rows are beside it, on every native level and with any number
of threads.

Paper   https://arxiv.org/abs/2306.00978 (AWQ, the grouped format); https://arxiv.org/abs/2211.10438 (SmoothQuant,
        per-token 8-bit activations)
"""

from __future__ import annotations

import torch
from torch import Tensor

from headrace import kernels
from headrace.kernels import after
from headrace.kernels.before import Before, apply, native_before
from headrace.kernels.int_linear import layout, reference
from headrace.kernels.int_linear.layout import IntWeight, Rows

__all__ = ["IntWeight", "Rows", "int_linear", "outputs", "pack", "quantise", "round_and_pack"]


def int_linear(
    x: Tensor,
    weight: IntWeight,
    bias_O: Tensor | None = None,
    *,
    before: Before = None,
    add_TO: Tensor | None = None,
    out_TO: Tensor | None = None,
) -> Tensor:
    """[T, I] float32 (twice as wide before a gate) -> [T, O] float32. `out_TO` may be `add_TO`; it is returned.

    Rows of x need not follow each other. Raises ValueError where shapes or dtypes do not fit.
    """
    native = kernels.native("int_linear")
    if native is None:
        y_TO = reference.multiply(reference.quantise(apply(before, x), weight.group), weight)
        return after.apply(y_TO, bias_O, add_TO, out_TO)
    out = torch.empty(x.shape[0], weight.outputs) if out_TO is None else out_TO
    w = weight
    native(
        x,
        w.packed,
        w.outputs,
        w.width,
        w.group,
        w.bits,
        w.zeros,
        w.few,
        out,
        bias_O,
        add_TO,
        *native_before(before),
    )
    return out


def quantise(x_TI: Tensor, group: int, before: Before = None) -> Rows:
    """The rows that a product with a weight of these groups sees."""
    native = kernels.native("int_linear_rows")
    if native is None:
        return reference.quantise(apply(before, x_TI), group)
    count, width = x_TI.shape[0], x_TI.shape[1] // (2 if isinstance(before, str) else 1)
    group = min(group, width)
    rows = Rows(
        torch.empty(count, -(-width // layout.CHUNK) * layout.CHUNK, dtype=torch.int8),
        torch.empty(count),
        torch.empty(count, -(-width // group), dtype=torch.int32),
    )
    native(x_TI, group, rows.codes_TI, rows.scales_T, rows.sums_TG, *native_before(before))
    return rows


def pack(
    codes_OI: Tensor,
    scales_OG: Tensor,
    zeros_OG: Tensor | None = None,
    *,
    group: int,
    bits: int,
    into: Tensor | None = None,
) -> IntWeight:
    """Codes (uint8) with their scales (float16) and zero points (uint8) as a weight; its bytes are `into` if given."""
    count, width = codes_OI.shape
    group = min(group, width)
    if into is None:
        into = torch.empty(
            layout.packed_bytes(count, width, group, bits, zeros_OG is not None), dtype=torch.uint8
        )
    native = kernels.native("int_linear_pack")
    if native is None:
        into.copy_(layout.pack(codes_OI, scales_OG, zeros_OG, group, bits))
    else:
        native(codes_OI, scales_OG, zeros_OG, group, bits, into)
    return IntWeight(into, count, width, group, bits, zeros_OG is not None)


def round_and_pack(
    rows_OI: Tensor, *, group: int, bits: int, asymmetric: bool, into: Tensor | None = None
) -> IntWeight:
    """Weights (float32, bfloat16 or float16, contiguous) rounded to nearest; the bytes are `into` if given.

    In float32, one rounding per operation, halves to the even neighbour, for each output and group of inputs:

        low, high = min(0, least weight), max(0, greatest weight);   top, middle = 2^bits - 1, 2^(bits-1)
        symmetric     scale = float16((high if high > -low else low) / -middle)
        asymmetric    scale = float16((high - low) / top)
        factor    = 1 / scale, or 0 where the scale is: then every weight of the group becomes 0
        zero      = middle, or if asymmetric min(round(-low * factor), top)
        code      = clamp(round(weight * factor) + zero, 0, top)

    All levels and the reference give the same bytes. Raises ValueError for weights that are infinite or not a number,
    and for scales beyond float16.
    """
    count, width = rows_OI.shape
    group = min(group, width)
    if into is None:
        into = torch.empty(layout.packed_bytes(count, width, group, bits, asymmetric), dtype=torch.uint8)
    native = kernels.native("int_linear_round_and_pack")
    if native is None:
        into.copy_(layout.pack(*reference.round_to_nearest(rows_OI, group, bits, asymmetric), group, bits))
    else:
        native(rows_OI, group, bits, asymmetric, into)
    return IntWeight(into, count, width, group, bits, asymmetric)


def outputs(weight: IntWeight, ids_T: Tensor) -> Tensor:
    """Rows `ids_T` (int64) of the weight matrix, in float32: what an embedding looks up. [T, I]."""
    native = kernels.native("int_linear_outputs")
    if native is None:
        return reference.outputs(weight, ids_T)
    out_TI = torch.empty(len(ids_T), weight.width)
    w = weight
    native(w.packed, w.outputs, w.width, w.group, w.bits, w.zeros, ids_T, out_TI)
    return out_TI

"""bf16_linear: rows times a weight matrix, both in bfloat16, summed in float32.

    x_TI = bfloat16(before(x))                             # a norm, a gate, or nothing
    for each row t, output o:
        out_to = sum over i, in order:  w_oi * x_ti   (+ bias_o)  (+ add_to)

A row has the same bits whatever rows are beside it, on each native level and with any number of threads; levels differ
in how an instruction rounds a pair of products.

Paper   nobody's: it is how bfloat16 models are meant to be run
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from headrace import kernels
from headrace.kernels import after
from headrace.kernels.before import Before, apply, native_before
from headrace.kernels.bf16_linear import reference


class Bf16Weight(NamedTuple):
    """A weight matrix [O, I] in bfloat16."""

    packed: Tensor
    """bfloat16, flat."""
    outputs: int
    width: int

    @property
    def nbytes(self) -> int:
        return self.packed.nbytes


def bf16_linear(
    x: Tensor,
    weight: Bf16Weight,
    bias_O: Tensor | None = None,
    *,
    before: Before = None,
    add_TO: Tensor | None = None,
    out_TO: Tensor | None = None,
) -> Tensor:
    """[T, I] float32 (twice as wide before a gate) -> [T, O] float32. `out_TO` may be `add_TO`; it is returned.

    Rows of x need not follow each other. Raises ValueError where shapes or dtypes do not fit.
    """
    native = kernels.native("bf16_linear")
    if native is None:
        y_TO = reference.multiply(apply(before, x), reference.unpack(*weight))
        return after.apply(y_TO, bias_O, add_TO, out_TO)
    out = torch.empty(x.shape[0], weight.outputs) if out_TO is None else out_TO
    native(x, weight.packed, weight.outputs, weight.width, out, bias_O, add_TO, *native_before(before))
    return out


def pack(weight_OI: Tensor, into: Tensor | None = None) -> Bf16Weight:
    """A matrix (bfloat16; float32 and float16 are rounded to it) as a weight; its numbers are `into` if given."""
    outputs, width = weight_OI.shape
    if into is None:
        into = torch.empty(reference.packed_items(outputs, width), dtype=torch.bfloat16)
    native = kernels.native("bf16_linear_pack")
    if native is None:
        into.copy_(reference.pack(weight_OI.bfloat16()))
    else:
        native(weight_OI, into)
    return Bf16Weight(into, outputs, width)


def outputs(weight: Bf16Weight, ids_T: Tensor) -> Tensor:
    """Rows `ids_T` (int64) of the weight matrix, in float32: what an embedding looks up. [T, I]."""
    native = kernels.native("bf16_linear_outputs")
    if native is None:
        return reference.unpack(*weight)[ids_T].float()
    out_TI = torch.empty(len(ids_T), weight.width)
    native(weight.packed, weight.outputs, weight.width, ids_T, out_TI)
    return out_TI

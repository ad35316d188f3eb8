"""dfloat_linear: rows times a bfloat16 weight matrix whose high bytes are stored in three bits each.

    w_OI = decode(weight)                # the bfloat16 weights that were packed, bit for bit
    out_TO = bf16_linear(x, w_OI, ...)   # 32 inputs of 64 outputs at a time, from the cache

A product has the bits of bf16_linear's on the same level, with any number of threads.

A high byte is a sign and the upper seven bits of an exponent. Those of trained weights are few: of a normal law's, the
eight commonest are all but one in forty to eighty. Each block of 64 outputs has a table of eight; a code of three bits
says which. The others, escapes, are listed with their places, 16 bits each. 11.2 to 11.4 bits per weight for a normal
law, whose entropy is 10.6; at worst (every high byte as common as every other) 27, more than the 16 of bfloat16.

Paper   https://arxiv.org/abs/2504.11651 (DFloat11, which has a Huffman code of exponents in this place)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from headrace import kernels
from headrace.kernels import after
from headrace.kernels.before import Before, apply, native_before
from headrace.kernels.bf16_linear import reference as bf16_reference
from headrace.kernels.bf16_linear.reference import BLOCK
from headrace.kernels.dfloat_linear import reference
from headrace.kernels.dfloat_linear.reference import Parts, most_escape_bytes, plane_bytes


@dataclass(frozen=True)
class DfloatWeight:
    """A weight matrix [O, I] in bfloat16, packed as dfloat_linear/kernel.h draws it."""

    parts: Parts
    outputs: int
    width: int

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts)


def dfloat_linear(
    x: Tensor,
    weight: DfloatWeight,
    bias_O: Tensor | None = None,
    *,
    before: Before = None,
    add_TO: Tensor | None = None,
    out_TO: Tensor | None = None,
) -> Tensor:
    """[T, I] float32 (twice as wide before a gate) -> [T, O] float32. `out_TO` may be `add_TO`; it is returned.

    Rows of x need not follow each other. Raises ValueError where shapes or dtypes do not fit, and where the list of
    escapes is not what was packed.
    """
    native = kernels.native("dfloat_linear")
    w = weight
    if native is None:
        y_TO = bf16_reference.multiply(apply(before, x), reference.unpack(w.parts, w.outputs, w.width))
        return after.apply(y_TO, bias_O, add_TO, out_TO)
    out = torch.empty(x.shape[0], w.outputs) if out_TO is None else out_TO
    native(x, *w.parts, w.outputs, w.width, out, bias_O, add_TO, *native_before(before))
    return out


def pack(weight_OI: Tensor, planes: Tensor | None = None) -> DfloatWeight:
    """A matrix (bfloat16; float32 and float16 are rounded to it) as a weight, whose planes are `planes` if given.

    All levels and the reference give the same bytes.
    """
    outputs, width = weight_OI.shape
    if planes is None:
        planes = torch.empty(plane_bytes(outputs, width), dtype=torch.uint8)
    native = kernels.native("dfloat_linear_pack")
    if native is None:
        found = reference.pack(weight_OI.bfloat16())
        return DfloatWeight(found._replace(planes=planes.copy_(found.planes)), outputs, width)
    blocks = -(-outputs // BLOCK)
    room = torch.empty(blocks, most_escape_bytes(width), dtype=torch.uint8)
    sizes = torch.empty(blocks, dtype=torch.int64)
    native(weight_OI, planes, room, sizes)
    stretches = [room[block, :size] for block, size in enumerate(sizes.tolist())]
    return DfloatWeight(Parts(planes, *reference.join(stretches)), outputs, width)


def outputs(weight: DfloatWeight, ids_T: Tensor) -> Tensor:
    """Rows `ids_T` (int64) of the weight matrix, in float32: what an embedding looks up. [T, I]."""
    native = kernels.native("dfloat_linear_outputs")
    w = weight
    if native is None:
        return reference.unpack(w.parts, w.outputs, w.width)[ids_T].float()
    out_TI = torch.empty(len(ids_T), w.width)
    native(*w.parts, w.outputs, w.width, ids_T, out_TI)
    return out_TI

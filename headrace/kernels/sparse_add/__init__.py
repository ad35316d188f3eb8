"""sparse_add: rows times a sparse matrix of bfloat16 weights, added to what is there.

    x_TI = before(x)                                     # a norm, a gate, or nothing
    for each row t, output o:
        out_to += sum over the entries (i, w) of o, in order:  w * x_ti

A row has the same bits whatever rows are beside it, on every native level and with any number of threads.

Paper   https://arxiv.org/abs/2306.03078 (SpQR, whose outliers are such a matrix)
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from headrace import kernels
from headrace.kernels.before import Before, apply, native_before
from headrace.kernels.sparse_add import reference


class SparseWeight(NamedTuple):
    """A sparse matrix [O, I], I at most 65,536."""

    starts: Tensor
    """int32 [O + 1]: where each output's entries begin, and the last ones end."""
    entries: Tensor
    """int32: input in the low 16 bits, bfloat16 weight in the high ones; inputs of an output ascend."""
    width: int

    @property
    def nbytes(self) -> int:
        return self.starts.nbytes + self.entries.nbytes


def sparse_add(x: Tensor, weight: SparseWeight, out_TO: Tensor, *, before: Before = None) -> Tensor:
    """[T, I] float32 (twice as wide before a gate), added to out_TO, which is returned.

    Rows of x need not follow each other. Raises ValueError where shapes or dtypes do not fit, and where entries are
    not what was packed.
    """
    native = kernels.native("sparse_add")
    if native is None:
        return out_TO.add_(reference.multiply(apply(before, x), weight.starts, weight.entries))
    native(x, *weight, out_TO, *native_before(before))
    return out_TO


def gather(places_E: Tensor, weights_E: Tensor, outputs: int, width: int) -> SparseWeight:
    """Weights (float32 and float16 are rounded to bfloat16) at their places, as one matrix.

    places_E: int64, output * width + input, in any order, each of them once.
    """
    if width > reference.MOST_WIDTH:
        raise ValueError(f"{width} inputs: an entry has room for {reference.MOST_WIDTH}")
    return SparseWeight(*reference.gather(places_E, weights_E.bfloat16(), outputs, width), width)


def pack(weight_OI: Tensor, chosen_OI: Tensor) -> SparseWeight:
    """The chosen places (bool [O, I]) of a matrix."""
    places_E = chosen_OI.flatten().nonzero().squeeze(1)
    return gather(places_E, weight_OI.flatten()[places_E], *weight_OI.shape)


def put_outputs(weight: SparseWeight, ids_T: Tensor, out_TI: Tensor) -> Tensor:
    """Entries of outputs `ids_T` (int64) take the place of what is in out_TI, float32, which is returned."""
    native = kernels.native("sparse_add_outputs")
    if native is not None:
        native(*weight, ids_T, out_TI)
        return out_TI
    outputs, inputs, weights = reference.unpack(*weight)
    for row, output in enumerate(ids_T.tolist()):
        mine = outputs == output
        out_TI[row, inputs[mine]] = weights[mine].to(out_TI.dtype)
    return out_TI

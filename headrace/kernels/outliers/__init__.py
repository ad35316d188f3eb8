"""outliers: which weights of some rows cost the most when the rest is rounded in groups.

    for each group of inputs of each row, a_0 >= a_1 >= ... its largest magnitudes, and W the sum of its importance:
        S_m = (a_0^2 - a_m^2) * W                 # saved when the m largest are left out, for m = 0, 1, 2, 4, ..., most
        worth of the weights of set (m_i, m_j]  = slope there of the least concave function that is nowhere below S
                                                = min over a <= i of max over b >= j:  (S_b - S_a) / (m_b - m_a)
        times 1 - k / 2^20 for the k-th largest   # larger ones first, where not all of a set are chosen
    of each part of the rows, the weights that are worth most are chosen, and of equals the first ones

A group's step is in proportion to its largest weight, and each error is about a step: its cost is a_0^2 * W, and two
of a size save nothing one by one. With importance that differs, a weight that is kept may also save its own error,
a_m^2 * importance_i, where m of its group are chosen by their worth alone.

Arithmetic is in float32, one rounding per operation: the same marks on every level and with any number of threads.

Paper   https://arxiv.org/abs/2306.03078 (SpQR), which asks the same two questions of each weight
"""

from __future__ import annotations

import torch
from torch import Tensor

from headrace import kernels
from headrace.kernels.outliers import reference

LEAST, SHARES, MOST = 4, 16, 256
"""Of its largest weights a group offers at least so many, or so many times what each would have if all had the same;
and at most so many."""


def choose(
    rows_RI: Tensor, *, group: int, count: int, parts: int = 1, importance_I: Tensor | None = None
) -> Tensor:
    """`count` weights to keep as they are in each of `parts` equal parts of the rows: row * inputs + input, int64
    [parts * count], ascending. Pure.

    rows_RI: bfloat16, contiguous. group: inputs that share a step, two at least. importance_I: what the squared error
    of a weight counts for, at each input (1 over the diagonal of an inverse Hessian); None: all alike. Raises
    ValueError for weights that are infinite or not a number.
    """
    rows, inputs = rows_RI.shape
    places_E = torch.empty(parts * count, dtype=torch.int64)
    if not count:
        return places_E
    native = kernels.native("outliers") if importance_I is None else None
    most = min(group - 1, MOST, max(LEAST, SHARES * count * parts * group // (rows * inputs)))
    if native is None:
        marks_RI = reference.choose(rows_RI, group, count, parts, most, importance_I)
        return marks_RI.flatten().nonzero().squeeze(1)
    native(rows_RI, group, count, parts, most, places_E)
    return places_E

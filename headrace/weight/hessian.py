"""Rounding that makes good for itself: the error of an input is moved into the inputs that are still to be rounded.

For a product whose inputs have the second moments H = sum x x^T, the error of rounded weights W' is
tr((W' - W) H (W' - W)^T). Inputs are rounded one after the other; what the error of input j does to the product is
undone as well as the inputs behind it can: w -= (w_j - w'_j) / U_jj * U_j:, with U the upper Cholesky factor of H^-1.

Paper   https://arxiv.org/abs/2210.17323 (GPTQ), after https://arxiv.org/abs/2208.11580 (Optimal Brain Compression)

Shape suffixes beside those of headrace/types.py: O outputs, I inputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from headrace.weight.codes import Coded

SLAB = 128
"""Inputs after which the others behind are told, all at once: one large product instead of many thin ones."""


def error(difference_OI: Tensor, products_II: Tensor) -> float:
    """tr(D H D^T): the squared error of a product, summed over the rows of H."""
    return float(((difference_OI @ products_II) * difference_OI).sum())


def compensate(
    rows_OI: Tensor, products_II: Tensor, form: Coded, *, damp: float = 0.01, sort: bool = False
) -> Tensor:
    """Rounds rows with compensation: uint8 [O, row_bytes].

    products_II: sum of x x^T of the rows that the product sees. damp: share of its mean diagonal that is added to it,
    so that it can be inverted. sort: inputs of much activity first; scales are then fitted beforehand, to the weights
    as they were. Scales of unsorted groups are fitted when their turn comes, to what the weights have become. The
    format is told what an error of input j counts for when the inputs behind it have made up for it: 1 / U_jj^2.
    """
    inputs = rows_OI.shape[1]
    group = form.group_of(inputs)
    diagonal = products_II.diagonal()
    order = diagonal.argsort(descending=True, stable=True) if sort else torch.arange(inputs)
    factor_II = _factor(products_II, damp, order).to(rows_OI.dtype)
    grid = form.grid(rows_OI, factor_II.diagonal()[order.argsort()] ** -2)
    if sort:
        grid.fit(0, rows_OI)
    left_OI = rows_OI[:, order].clone()
    for start, stop in _slabs(inputs, inputs if sort else group):
        if not sort and start % group == 0:
            grid.fit(start, left_OI[:, start : start + group])
        error_OS = torch.empty_like(left_OI[:, start:stop])
        for i in range(start, stop):
            near_O1 = grid.round(int(order[i]), left_OI[:, i : i + 1])
            error_O = (left_OI[:, i] - near_O1.squeeze(1)) / factor_II[i, i]
            left_OI[:, i:stop] -= error_O[:, None] * factor_II[i, i:stop]
            error_OS[:, i - start] = error_O
        left_OI[:, stop:] -= error_OS @ factor_II[start:stop, stop:]
    return grid.stored()


def _slabs(inputs: int, group: int) -> list[tuple[int, int]]:
    """[start, stop) of at most SLAB inputs, none of them across the end of a group."""
    return [
        (start, min(start + SLAB, first + group, inputs))
        for first in range(0, inputs, group)
        for start in range(first, min(first + group, inputs), SLAB)
    ]


def _factor(products_II: Tensor, damp: float, order: Tensor) -> Tensor:
    """U, float64: upper, U^T U = (H + damp)^-1, inputs in this order."""
    found_II = products_II[order][:, order].double()
    mean = float(found_II.diagonal().mean())
    found_II.diagonal().add_(
        damp * mean if mean > 0 else 1.0
    )  # nothing was seen: every error counts the same
    found_II = torch.linalg.cholesky(found_II)  # step by step, so that no more than three are there at once
    found_II = torch.cholesky_inverse(found_II)
    return torch.linalg.cholesky(found_II, upper=True)

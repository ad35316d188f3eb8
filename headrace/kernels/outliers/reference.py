"""The obvious PyTorch twin of outliers, and what the importance of inputs changes.

Shape suffixes beside those of headrace/weight/matrix.py: G groups of inputs, N the inputs of a group, K its largest
weights, S sets of them, P parts of the rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from headrace.kernels.int_linear.layout import pad
from headrace.kernels.int_linear.reference import NOT_FINITE


def choose(
    rows_RI: Tensor, group: int, count: int, parts: int, most: int, importance_I: Tensor | None = None
) -> Tensor:
    """Marks `count` weights of each part, bool [R, I]; a group offers `most` of its own."""
    rows, inputs = rows_RI.shape
    if not torch.isfinite(rows_RI).all():
        raise ValueError(NOT_FINITE)
    weigh_I = torch.ones(inputs) if importance_I is None else importance_I.float()
    weigh_GN = pad(weigh_I, group).unflatten(0, (-1, group))
    size_RGN = pad(rows_RI.float().abs(), group).unflatten(1, (-1, group))
    size_RGN, at_RGN = size_RGN.sort(dim=-1, descending=True, stable=True)
    squares_RGK, at_RGK = size_RGN[..., : most + 1].square(), at_RGN[..., :most]
    worth_RGK = _worth(squares_RGK, weigh_GN.sum(-1), most)
    worth_RGN = torch.zeros_like(size_RGN).scatter_(-1, at_RGK, worth_RGK)
    if importance_I is not None:
        chosen_RGK = _first(worth_RGK.view(parts, -1), min(count, worth_RGK[: rows // parts].numel()))
        taken_RG1 = chosen_RGK.view(worth_RGK.shape).sum(-1, keepdim=True)
        worth_RGN = torch.maximum(worth_RGN, squares_RGK.gather(-1, taken_RG1) * weigh_GN)
    return _first(worth_RGN.flatten(1)[:, :inputs].reshape(parts, -1), count).view(rows, inputs)


def _worth(squares_RGK: Tensor, weight_G: Tensor, most: int) -> Tensor:
    """What each of the largest weights saves in the others, of the set that it is offered with."""
    ends = sorted({0, most, *(1 << bit for bit in range(most.bit_length()))})
    saved_RGS = (squares_RGK[..., :1] - squares_RGK[..., ends]) * weight_G[:, None]
    worth, sizes = [], []
    for after in range(1, len(ends)):  # slopes of the least concave function that is nowhere below
        slopes = [
            torch.stack(
                [
                    (saved_RGS[..., b] - saved_RGS[..., a]) / (ends[b] - ends[a])
                    for b in range(after, len(ends))
                ]
            ).amax(0)
            for a in range(after)
        ]
        worth.append(torch.stack(slopes).amin(0))
        sizes.append(ends[after] - ends[after - 1])
    falling_K = 1 - torch.arange(most) * 2.0**-20  # larger ones first, where not all of a set are chosen
    return torch.stack(worth, -1).repeat_interleave(torch.tensor(sizes), -1) * falling_K


def _first(worth_PN: Tensor, count: int) -> Tensor:
    """Marks the `count` largest of each part; of equals the first ones."""
    least_P1 = worth_PN.topk(count, -1).values[:, -1:]
    more_PN, same_PN = worth_PN > least_P1, worth_PN == least_P1
    left_P1 = count - more_PN.sum(-1, keepdim=True)
    return more_PN | (same_PN & (same_PN.cumsum(-1) <= left_P1))

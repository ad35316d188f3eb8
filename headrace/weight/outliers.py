"""Which weights of some rows cost the most when the rest is rounded in groups: the outliers of SpQR.

Paper   https://arxiv.org/abs/2306.03078, which asks the same two questions of each weight

A group's step is in proportion to its largest weight a_0, and each error is about a step: the group costs
a_0^2 * sum of importance_i. Without its m largest weights it costs a_m^2 * sum. Any other weight that is kept saves its
own error, a_m^2 * importance_i, which is little unless few inputs count for much.

Shape suffixes beside those of headrace/weight/matrix.py: G groups of inputs, N the inputs of a group, K its largest
weights, S sets of them, P parts of the rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from headrace.kernels.int_linear.layout import pad

LEAST, SHARES = 4, 32
"""Of its largest weights a group offers at least so many, or so many times what each would have if all had the same."""


def choose_outliers(
    rows_RI: Tensor, *, group: int, count: int, parts: int = 1, importance_I: Tensor | None = None
) -> Tensor:
    """`count` places to keep as they are in each of `parts` equal parts of the rows, bool [R, I]. Pure.

    rows_RI: float32, of which at most a quarter are chosen. importance_I: what the squared error of a weight counts
    for, at each input (1 over the diagonal of an inverse Hessian); None: all alike.

    A group offers its largest weights in growing sets, as two of a size save nothing one by one. The weights that save
    most are chosen, and of those that save the same the first ones.
    """
    rows, inputs = rows_RI.shape
    if not count:
        return torch.zeros(rows, inputs, dtype=torch.bool)
    size_RGN = pad(rows_RI.abs(), group).unflatten(1, (-1, group))
    weigh_I = torch.ones(inputs) if importance_I is None else importance_I.float()
    weigh_GN = pad(weigh_I, group).unflatten(0, (-1, group))
    most = min(group - 1, max(LEAST, SHARES * count * parts * group // (rows * inputs)))
    largest_RGK = size_RGN.topk(most + 1, -1)
    squares_RGK, at_RGK = largest_RGK.values.square(), largest_RGK.indices[..., :most]
    worth_RGK = _worth(squares_RGK, weigh_GN.sum(-1), most)
    worth_RGN = torch.zeros_like(size_RGN).scatter_(-1, at_RGK, worth_RGK)
    if importance_I is not None:
        chosen_RGK = _first(worth_RGK.view(parts, -1), count).view(worth_RGK.shape)
        own_RGN = squares_RGK.gather(-1, chosen_RGK.sum(-1, keepdim=True)) * weigh_GN
        worth_RGN = torch.maximum(worth_RGN, own_RGN)
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

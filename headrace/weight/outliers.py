"""Which weights of some rows cost the most when the rest is rounded in groups: the outliers of SpQR.

Paper   https://arxiv.org/abs/2306.03078, which asks the same two questions of each weight

Shape suffixes beside those of headrace/weight/matrix.py: G groups of inputs, P parts of the rows, S sets of weights.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

ROUNDS = 3
"""Times that outliers are chosen, a part of them each: whom it pays to leave out depends on who is out already."""
OFFERS = (1, 4, 16)
"""How many of a group's largest weights are tried together."""


def choose_outliers(
    rows_RI: Tensor,
    rounded: Callable[[Tensor], Tensor],
    *,
    group: int,
    count: int,
    parts: int = 1,
    importance_I: Tensor | None = None,
) -> Tensor:
    """`count` places to keep as they are in each of `parts` equal parts of the rows, bool [R, I]. Pure.

    rounded: what rounding makes of rows, float32 [R, I]; a zero stays zero, and a group's largest weight sets its step.
    importance_I: what an error of a weight counts for, at each input (1 over the diagonal of an inverse Hessian);
    None: all alike.

    In each round a group offers its largest weights, without which the others' step is smaller, in growing sets, and
    the weight whose own error is largest. What saves the most error for each weight in it is chosen.
    """
    weigh_I = torch.ones(rows_RI.shape[1]) if importance_I is None else importance_I.float()
    chosen_RI = torch.zeros(rows_RI.shape, dtype=torch.bool)

    def errors(kept_RI: Tensor) -> Tensor:
        return (kept_RI - rounded(kept_RI)).square() * weigh_I

    for left in range(ROUNDS, 0, -1):
        room_P = (count - chosen_RI.view(parts, -1).sum(1)) // left
        kept_RI = rows_RI.masked_fill(chosen_RI, 0)
        errors_RI = errors(kept_RI)
        sets = [torch.zeros_like(chosen_RI), *_largest(kept_RI.abs(), group)]
        rest_SRG = torch.stack([_sums(errors(kept_RI.masked_fill(s, 0)), group) for s in sets[1:]])
        saved_SRG = _sums(errors_RI, group) - rest_SRG
        more = [after & ~before for before, after in pairwise(sets)]
        size_SRG = torch.stack([_sums(m, group) for m in more])
        worth_SRG = saved_SRG.diff(dim=0, prepend=torch.zeros_like(saved_SRG[:1])) / size_SRG.clamp(min=1)
        worth_SRG[0] = (saved_SRG / size_SRG.cumsum(0).clamp(min=1)).amax(
            0
        )  # the first of many may save little
        worth_SRG = worth_SRG.cummin(0).values  # a set comes after those that it adds to
        worst_RI = _top(errors_RI, group, 1)
        worth = torch.cat([_sums(errors_RI * worst_RI, group)[None], worth_SRG])
        size = torch.cat([_sums(worst_RI, group)[None], size_SRG])
        for offer_RI, taken_RG in zip((worst_RI, *more), _first(worth, size, room_P), strict=True):
            chosen_RI |= offer_RI & taken_RG.repeat_interleave(group, -1)[:, : rows_RI.shape[1]]
    room_P = count - chosen_RI.view(parts, -1).sum(1)
    if room_P.any():  # what no offer fitted in
        left_RI = errors(rows_RI.masked_fill(chosen_RI, 0)).masked_fill(chosen_RI, -1)
        chosen_RI |= _first(left_RI[None], torch.ones_like(left_RI)[None], room_P)[0]
    return chosen_RI


def _first(worth_SRG: Tensor, size_SRG: Tensor, room_P: Tensor) -> Tensor:
    """Marks what is worth most in each part of the rows, as far as all that is marked fits in its room."""
    shape = (len(worth_SRG), len(room_P), -1)
    worth_PN, size_PN = (x.view(shape).transpose(0, 1).flatten(1) for x in (worth_SRG, size_SRG))
    order_PN = worth_PN.sort(dim=-1, descending=True, stable=True).indices
    fits_PN = size_PN.gather(1, order_PN).cumsum(1) <= room_P[:, None]
    marked_PN = torch.zeros(order_PN.shape, dtype=torch.bool).scatter_(1, order_PN, fits_PN)
    return marked_PN.unflatten(1, (len(worth_SRG), -1)).transpose(0, 1).reshape(worth_SRG.shape)


def _largest(x_RI: Tensor, group: int) -> list[Tensor]:
    """Marks as many of each group as OFFERS says, each set part of the next one."""
    return [_top(x_RI, group, count) for count in OFFERS]


def _top(x_RI: Tensor, group: int, count: int) -> Tensor:
    """Marks the `count` largest of each group that are above zero; the first ones of those that are equal."""
    parts = _grouped(x_RI, group)
    order = parts.sort(dim=-1, descending=True, stable=True).indices[..., :count]
    marks = torch.zeros(parts.shape, dtype=torch.bool).scatter_(-1, order, True)
    return (marks & (parts > 0)).flatten(1)[:, : x_RI.shape[1]]


def _sums(x_RI: Tensor, group: int) -> Tensor:
    return _grouped(x_RI.float(), group).sum(-1)


def _grouped(x_RI: Tensor, group: int) -> Tensor:
    """[R, G, group], the last one filled up with zeros."""
    return F.pad(x_RI, (0, -x_RI.shape[1] % group)).view(len(x_RI), -1, group)

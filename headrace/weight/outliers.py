"""Which weights of some rows cost the most when the rest is rounded in groups: the outliers of SpQR.

Paper   https://arxiv.org/abs/2306.03078, which asks the same two questions of each weight

Shape suffixes beside those of headrace/weight/matrix.py: G groups of inputs.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

ROUNDS = 8
"""Times that outliers are chosen, a part of them each: whom it pays to leave out depends on who is out already."""


def choose_outliers(
    rows_RI: Tensor,
    rounded: Callable[[Tensor], Tensor],
    *,
    group: int,
    count: int,
    importance_I: Tensor | None = None,
) -> Tensor:
    """`count` places to keep as they are, bool [R, I]. Pure; ties go to the first in order.

    rounded: what rounding makes of rows, float32 [R, I]; a zero stays zero, and a group's largest weight sets its step.
    importance_I: what an error of a weight counts for, at each input (1 over the diagonal of an inverse Hessian);
    None: all alike.

    In each round a group offers the better of two sets of weights: its largest, without which the others' step is
    smaller, or those whose own errors are largest. The groups that gain most have theirs chosen.
    """
    R, I = rows_RI.shape  # noqa: E741
    offer = max(1, count * group // (R * I) // 2)
    weigh_I = torch.ones(I) if importance_I is None else importance_I.float()
    chosen_RI = torch.zeros(R, I, dtype=torch.bool)
    for left in range(ROUNDS, 0, -1):
        missing = count - int(chosen_RI.sum())
        groups = missing // left // offer
        if groups == 0:
            continue
        kept_RI = rows_RI.masked_fill(chosen_RI, 0)
        errors_RI = _errors(kept_RI, rounded(kept_RI), weigh_I)
        largest_RI = _top(kept_RI.abs(), group, offer) & ~chosen_RI
        without_RI = kept_RI.masked_fill(largest_RI, 0)
        now_RG, then_RG = (
            _grouped(e, group).sum(-1) for e in (errors_RI, _errors(without_RI, rounded(without_RI), weigh_I))
        )
        worst_RI = _top(errors_RI, group, offer) & ~chosen_RI
        by_step_RG, by_error_RG = now_RG - then_RG, _grouped(errors_RI * worst_RI, group).sum(-1)
        gains_RG = torch.maximum(by_step_RG, by_error_RG)
        best = gains_RG.flatten().sort(descending=True, stable=True).indices[:groups]
        taken_RG = torch.zeros(gains_RG.numel(), dtype=torch.bool)
        taken_RG[best] = True
        taken_RG = taken_RG.view_as(gains_RG)
        for offered_RI, which_RG in (
            (largest_RI, taken_RG & (by_step_RG >= by_error_RG)),
            (worst_RI, taken_RG & (by_step_RG < by_error_RG)),
        ):
            chosen_RI |= offered_RI & which_RG.repeat_interleave(group, -1)[:, :I]
    return _fill(rows_RI, rounded, weigh_I, chosen_RI, count)


def _fill(
    rows_RI: Tensor, rounded: Callable[[Tensor], Tensor], weigh_I: Tensor, chosen_RI: Tensor, count: int
) -> Tensor:
    """What rounds left over goes to the largest errors."""
    missing = count - int(chosen_RI.sum())
    if missing:
        kept_RI = rows_RI.masked_fill(chosen_RI, 0)
        errors_RI = _errors(kept_RI, rounded(kept_RI), weigh_I).masked_fill(chosen_RI, -1)
        chosen_RI.view(-1)[errors_RI.flatten().sort(descending=True, stable=True).indices[:missing]] = True
    return chosen_RI


def _errors(rows_RI: Tensor, rounded_RI: Tensor, weigh_I: Tensor) -> Tensor:
    return (rows_RI - rounded_RI).square() * weigh_I


def _grouped(x_RI: Tensor, group: int) -> Tensor:
    """[R, G, group], the last one filled up with zeros."""
    return F.pad(x_RI, (0, -x_RI.shape[1] % group)).view(len(x_RI), -1, group)


def _top(x_RI: Tensor, group: int, count: int) -> Tensor:
    """The `count` largest of each group that are above zero, the first ones of those that are equal."""
    parts = _grouped(x_RI, group)
    order = parts.sort(dim=-1, descending=True, stable=True).indices[..., :count]
    marked = torch.zeros(parts.shape, dtype=torch.bool).scatter_(-1, order, True)
    return (marked & (parts > 0)).flatten(1)[:, : x_RI.shape[1]]

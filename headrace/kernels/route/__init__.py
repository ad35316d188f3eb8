"""route: which experts each row runs through, with what share, and the way of rows there and back.

    route(logits_TE)         share = softmax(logits_TE); the K largest of each row, lower ids first among equals,
                             divided by their sum where asked for
    group(expert_TK, ..)     the T K assignments expert by expert, rows ascending within one
    gather(x_TD, row_A)      out_a = x[row_a]
    scatter_add(out_TD, ..)  out[row_a] += y_a * share_a, the product rounded first

Called expert by expert, scatter_add sums each row's experts in ascending order, so a row has the same bits whatever
rows are beside it. Shares are computed in float64 and rounded once.

Shape suffixes beside those of headrace/types.py: E experts, K active experts per row, A assignments.
Papers: https://arxiv.org/abs/1701.06538 (gated mixture), https://arxiv.org/abs/2401.04088 (Mixtral).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from headrace import kernels
from headrace.kernels.route import reference


class Groups(NamedTuple):
    """Assignments of rows to experts, expert by expert."""

    counts: list[int]
    """How many each of the E experts has."""
    row_A: Tensor
    """int64"""
    share_A: Tensor


def route(logits_TE: Tensor, active: int, renormalise: bool) -> tuple[Tensor, Tensor]:
    """[T, E] -> shares (float32, float64 for such logits) and experts (int64), [T, K] each, largest first.

    A logit that is NaN is larger than any number. Raises ValueError unless 0 < active <= E.
    """
    if not 0 < active <= logits_TE.shape[1]:
        raise ValueError(f"{active} active experts of {logits_TE.shape[1]}")
    if logits_TE.dtype != torch.float64:
        logits_TE = logits_TE.float()
    native = _native("route", logits_TE)
    if native is None:
        return reference.route(logits_TE, active, renormalise)
    shape = (len(logits_TE), active)
    share_TK, expert_TK = torch.empty(shape), torch.empty(shape, dtype=torch.int64)
    native(logits_TE.contiguous(), share_TK, expert_TK, renormalise)
    return share_TK, expert_TK


def group(share_TK: Tensor, expert_TK: Tensor, experts: int) -> Groups:
    """The assignments sorted by expert; there are `experts` of them."""
    native = _native("route_group", share_TK)
    if native is None:
        return Groups(*reference.group(share_TK, expert_TK, experts))
    count = expert_TK.numel()
    count_E = torch.empty(experts, dtype=torch.int64)
    row_A, share_A = torch.empty(count, dtype=torch.int64), torch.empty(count)
    native(share_TK, expert_TK, count_E, row_A, share_A)
    return Groups(count_E.tolist(), row_A, share_A)


def gather(x_TD: Tensor, row_A: Tensor) -> Tensor:
    """[T, D] and int64 [A] -> [A, D]."""
    native = _native("route_gather", x_TD)
    if native is None:
        return reference.gather(x_TD, row_A)
    out_AD = torch.empty(len(row_A), x_TD.shape[1])
    native(x_TD, row_A, out_AD)
    return out_AD


def scatter_add(out_TD: Tensor, y_AD: Tensor, row_A: Tensor, share_A: Tensor, first: int = 0) -> None:
    """Adds to rows of out_TD, none of them twice. y holds the assignments from `first` on, as many as it has rows."""
    native = _native("route_scatter_add", out_TD)
    if native is None:
        reference.scatter_add(out_TD, y_AD, row_A, share_A, first)
    else:
        native(out_TD, y_AD.contiguous(), row_A, share_A, first)


def _native(operation: str, of: Tensor) -> Callable[..., Any] | None:
    return kernels.native(operation) if of.is_cpu and of.dtype == torch.float32 else None

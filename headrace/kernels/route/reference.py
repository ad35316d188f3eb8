"""route in plain PyTorch: what the fast kernels are compared with. The contracts are in `headrace.kernels.route`."""

from __future__ import annotations

import torch
from torch import Tensor


def route(logits_TE: Tensor, active: int, renormalise: bool) -> tuple[Tensor, Tensor]:
    """The K largest shares of each row and whose they are."""
    expert_TK = logits_TE.sort(dim=-1, descending=True, stable=True).indices[:, :active]
    share_TK = logits_TE.double().softmax(dim=-1).gather(1, expert_TK)
    if renormalise:
        share_TK = share_TK / share_TK.sum(dim=-1, keepdim=True)
    return share_TK.to(logits_TE.dtype), expert_TK


def group(share_TK: Tensor, expert_TK: Tensor, experts: int) -> tuple[list[int], Tensor, Tensor]:
    """Assignments in the order of a stable sort by expert."""
    flat = expert_TK.flatten()
    order = flat.argsort(stable=True)
    counts: list[int] = torch.bincount(flat, minlength=experts).tolist()
    return counts, order // expert_TK.shape[1], share_TK.flatten()[order]


def gather(x_TD: Tensor, row_A: Tensor) -> Tensor:
    """The rows."""
    return x_TD[row_A]


def scatter_add(out_TD: Tensor, y_AD: Tensor, row_A: Tensor, share_A: Tensor, first: int) -> None:
    """In place."""
    own = slice(first, first + len(y_AD))
    out_TD.index_add_(0, row_A[own], (y_AD * share_A[own].unsqueeze(1)).to(out_TD.dtype))

"""The obvious PyTorch twin of best_pages: rank all pages, and read the first of them."""

from __future__ import annotations

import torch
from torch import Tensor


def best_pages(
    scores_RNB: Tensor, kv_heads: int, leading: int, first_R: Tensor, pages_R: Tensor, kept_R: Tensor
) -> Tensor:
    """See the package."""
    R, N, B = scores_RNB.shape
    b_B = torch.arange(B, device=scores_RNB.device)
    anyway_RB = (b_B < leading) | (b_B >= first_R[:, None])
    scores_RNB = scores_RNB.masked_fill(anyway_RB[:, None], -torch.inf)
    relative_RNB = scores_RNB - scores_RNB.amax(-1, keepdim=True)
    best_GRB = relative_RNB.view(R, kv_heads, N // kv_heads, B).amax(2).transpose(0, 1)
    bounds_RB = torch.where(b_B < pages_R[:, None], torch.inf, -torch.inf).to(scores_RNB.dtype)
    best_GRB = torch.where(anyway_RB, bounds_RB, best_GRB)
    order_GRB = best_GRB.sort(dim=-1, descending=True, stable=True).indices
    taken_RB = b_B < kept_R[:, None]
    return torch.zeros_like(best_GRB, dtype=torch.bool).scatter_(-1, order_GRB, taken_RB.expand_as(order_GRB))

"""The obvious PyTorch twin of page_dots: gather the vectors of every page of every row, multiply."""

from __future__ import annotations

import torch
from torch import Tensor

from headrace.kernels.page_dots.store import PageVectors


def dots(
    q_RNX: Tensor,
    arena_PX: Tensor,
    store: PageVectors,
    tables_SB: Tensor,
    tables_R: Tensor,
    counts_R: Tensor,
) -> Tensor:
    """See the package."""
    R, N, X = q_RNX.shape
    wide = torch.promote_types(q_RNX.dtype, torch.float32)
    vectors_SBGCX = store.views(arena_PX)[tables_SB].to(wide)
    q_RGMX = q_RNX.to(wide).view(R, store.kv_heads, N // store.kv_heads, X)
    B = tables_SB.shape[1]
    out_RNBC = torch.empty(R, N, B, store.count, dtype=wide, device=q_RNX.device)
    for row in range(R):  # one after the other: what a row gives does not depend on the others
        vectors_GCBX = vectors_SBGCX[tables_R[row]].permute(1, 2, 0, 3)
        products = (q_RGMX[row][:, :, None, None] * vectors_GCBX[:, None]).sum(-1)  # [G, M, C, B]
        out_RNBC[row] = products.permute(0, 1, 3, 2).flatten(0, 1)
    absent_RB = torch.arange(B, device=q_RNX.device) >= counts_R[:, None]
    return out_RNBC.masked_fill_(absent_RB[:, None, :, None], -torch.inf)

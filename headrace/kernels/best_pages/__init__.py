"""best_pages: of each row's pages, those that are read for each kv head.

    for each row r, kv head g, page b < pages_r:            # n: the query heads that share g
        score_rgb = max_n (scores_rnb - max_b' scores_rnb')     over pages that are not read anyway
        read      = b < leading  or  b >= first_r               anyway
                    or score_rgb is among the best, as many as make `kept_r` pages; of equals the first

No score of a page that counts is NaN. A row's result does not depend on the other rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from headrace import kernels
from headrace.kernels.best_pages import reference

__all__ = ["best_pages"]


def best_pages(
    scores_RNB: Tensor, kv_heads: int, leading: int, first_R: Tensor, pages_R: Tensor, kept_R: Tensor
) -> Tensor:
    """bool [G, R, B]. int64: first_R, from where on all are read; pages_R, how many there are; kept_R, how many of them
    are read, at least those that are read anyway."""
    native = kernels.native("best_pages") if scores_RNB.is_cpu and scores_RNB.dtype == torch.float32 else None
    if native is None:
        return reference.best_pages(scores_RNB, kv_heads, leading, first_R, pages_R, kept_R)
    R, _, B = scores_RNB.shape
    out_GRB = torch.empty(kv_heads, R, B, dtype=torch.bool)
    native(scores_RNB.contiguous(), kv_heads, leading, first_R, pages_R, kept_R, out_GRB.view(torch.uint8))
    return out_GRB

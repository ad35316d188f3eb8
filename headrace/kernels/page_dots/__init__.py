"""page_dots: a batch's queries times the vectors that sum up each page of their tables.

    for each row r, query head n, page b < count_r of its table, vector c:      # g = n // (N / G), its kv head
        out_rnbc = sum_x q_rnx * vector_pgcx,   p = table_b
    and -inf for pages beyond the row's count

R rows, N query heads, G kv heads, S tables, B pages of a table, C vectors per page and kv head, X numbers of each. What
the vectors mean is their owner's business: the corners of a box around a page's keys, or means of some of them. A row's
result does not depend on the other rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from headrace import kernels
from headrace.kernels.page_dots import reference
from headrace.kernels.page_dots.store import PageVectors

__all__ = ["LANES", "PageVectors", "dots"]

LANES = 16


def dots(
    q_RNX: Tensor,
    arena_PX: Tensor,
    store: PageVectors,
    tables_SB: Tensor,
    tables_R: Tensor,
    counts_R: Tensor,
) -> Tensor:
    """[R, N, B, C], float32 (float64 for float64 queries). tables_SB: page numbers, int64, valid ones beyond a row's
    count as well; tables_R: each row's table; counts_R: how many of its pages count."""
    fits = q_RNX.is_cpu and q_RNX.dtype == torch.float32 and store.size % LANES == 0
    native = kernels.native("page_dots") if fits else None
    if native is None:
        return reference.dots(q_RNX, arena_PX, store, tables_SB, tables_R, counts_R)
    out_RNBC = torch.empty(*q_RNX.shape[:2], tables_SB.shape[1], store.count)
    native(
        q_RNX.contiguous(),
        arena_PX,
        store.at,
        store.kv_heads,
        store.count,
        tables_SB,
        tables_R,
        counts_R,
        out_RNBC,
    )
    return out_RNBC

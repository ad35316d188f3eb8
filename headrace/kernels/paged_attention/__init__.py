"""paged_attention: every row of a batch over the stored keys and values of its own sequence.

    for each row t, query head n:                          # g = n // (N / G), the kv head it reads
        for each position l in a page that the row's span reads,  l <= position_t,  and of these
                                                         l > position_t - window  or  l < sink:
            s_l = scale * (q_tn . k_lg)
        lse = log(sum_l exp(s_l));   out = sum_l exp(s_l - lse) * v_lg

    stored as float32 or bfloat16:  k and v, rounded to nearest, ties to even
    stored as int8, per token and kv head, for k as for v, each step one operation in float32:
        most = max_h |x_h|;   scale = most / 127
        code_h = nearest(x_h * (127 / most)), ties to even;  0 where most < 2^-100
        read as  code_h * scale;  scale is NaN where an x_h is not finite, so that all of the head reads as NaN

What is written stays as it is: a token's scale is its own, and no later token changes it. Keys lie transposed in their
page, so that sixteen tokens' scores are one register. Any mix of spans is one call: single rows, chunks, whole
prompts. A row's result does not depend on the other rows or on how its prompt was cut.

Paper   https://arxiv.org/abs/2309.06180 (PagedAttention); https://arxiv.org/abs/2205.14135 (FlashAttention, the online
        softmax)
"""

from __future__ import annotations

import torch
from torch import Tensor

from headrace import kernels
from headrace.kernels.attention import Queries, State
from headrace.kernels.paged_attention import reference
from headrace.kernels.paged_attention.store import PageStore
from headrace.types import Reads

__all__ = ["PageStore", "attend", "read", "write"]

_STORED = (torch.float32, torch.bfloat16, torch.int8)
LANES = 16


def write(arena_PX: Tensor, store: PageStore, k_TGH: Tensor, v_TGH: Tensor, slots_T: Tensor) -> None:
    """Stores one key and value per row at its slot (page * page_tokens + offset, int64). Rows may lie apart."""
    native = kernels.native("paged_attention_write") if _fits(store, k_TGH) else None
    if native is None:
        reference.write(arena_PX, store, k_TGH, v_TGH, slots_T)
    else:
        item = store.dtype.itemsize
        native(
            arena_PX,
            store.k_at,
            store.v_at,
            store.page_tokens,
            item,
            store.head_stride,
            k_TGH,
            v_TGH,
            slots_T,
        )


def read(arena_PX: Tensor, store: PageStore, pages_B: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Keys and values [length, G, H] of the first `length` tokens in these pages: as stored, float32 for int8."""
    return reference.read(arena_PX, store, pages_B, length)


def attend(queries: Queries, arena_PX: Tensor, store: PageStore, reads: Reads) -> State:
    """The state of every row over what it reads: out in q's dtype, lse in float32 (float64 for float64)."""
    q_TNH, positions_T, scale, window, sink = queries
    native = kernels.native("paged_attention") if _fits(store, q_TNH) else None
    if native is None:
        size = store.page_tokens
        return reference.attend(
            queries, lambda run: read(arena_PX, store, reads.pages(run, size), run.length), reads
        )
    out_TNH, lse_TN = torch.empty(q_TNH.shape), torch.empty(q_TNH.shape[:2])
    native(
        q_TNH,
        arena_PX,
        store.k_at,
        store.v_at,
        store.page_tokens,
        store.kv_heads,
        store.dtype.itemsize,
        store.head_stride,
        positions_T,
        reads.pages_B,
        reads.runs_W5,
        scale,
        window or 0,
        sink,
        out_TNH,
        lse_TN,
    )
    return State(out_TNH, lse_TN)


def _fits(store: PageStore, x: Tensor) -> bool:
    """Whether the native kernels take it: whole registers of tokens and of head dimensions."""
    whole = store.page_tokens % LANES == 0 and store.head_size % LANES == 0
    return whole and x.is_cpu and x.dtype == torch.float32 and store.dtype in _STORED

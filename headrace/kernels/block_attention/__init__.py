"""block_attention: a batch over stored blocks of keys and values in 4 or 2 bits; asymmetric, in groups.

    keys    of each channel, groups of tokens;  values  of each token, groups of channels:
        least = min(x), scale = (max(x) - least) / (2^bits - 1), both rounded to bfloat16
        code  = nearest((x - least) / scale), within 0 to 2^bits - 1;   read as  code * scale + least

    for each row t, query head n:                              # as in paged_attention
        s_l = sum_h q_h k_lh = sum_h (q_h scale_h) code_lh + sum_h q_h least_h
        out_h = sum_l w_l v_lh = sum_l (w_l scale_l) code_lh + sum_l w_l least_l

The native kernels round q_h scale_h, for each group of tokens, and w_l scale_l, for each block, to 8 bits of the
largest among them, so that the sums over codes are integers. That costs a seventh of what the codes cost, or less.
Sums of a row go in the order of positions, whatever rows are beside it: native levels agree bit for bit.

A block is written whole. See BlockStore for where its codes lie.

Paper   https://arxiv.org/abs/2402.02750 (KIVI); https://arxiv.org/abs/2205.14135 (FlashAttention, the online softmax)
"""

from __future__ import annotations

import torch
from torch import Tensor

from headrace import kernels
from headrace.kernels import paged_attention
from headrace.kernels.attention import Queries, State
from headrace.kernels.block_attention import reference
from headrace.kernels.block_attention.store import BlockStore
from headrace.types import Reads

__all__ = ["BlockStore", "attend", "read", "write"]


def write(arena_PX: Tensor, store: BlockStore, k_TGH: Tensor, v_TGH: Tensor, slots_T: Tensor) -> None:
    """Stores whole blocks: rows of each follow each other, and so do their slots (page * page_tokens + offset)."""
    first_B = slots_T[:: store.block_tokens]
    assert len(k_TGH) % store.block_tokens == 0 and not (first_B % store.block_tokens).any(), (
        "whole blocks only"
    )
    reference.write(arena_PX, store, k_TGH, v_TGH, slots_T)


def read(arena_PX: Tensor, store: BlockStore, pages_B: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Keys and values [length, G, H] float32 of the first `length` tokens in these pages."""
    return reference.read(arena_PX, store, pages_B, length)


def attend(queries: Queries, arena_PX: Tensor, store: BlockStore, reads: Reads) -> State:
    """The state of every row over what it reads: out in q's dtype, lse in float32 (float64 for float64)."""
    q_TNH, positions_T, scale, window, sink = queries
    native = kernels.native("block_attention") if _fits(store, q_TNH) else None
    if native is None:
        size = store.page_tokens
        return paged_attention.reference.attend(
            queries, lambda run: read(arena_PX, store, reads.pages(run, size), run.length), reads
        )
    out_TNH, lse_TN = torch.empty(q_TNH.shape), torch.empty(q_TNH.shape[:2])
    shape = (store.at, store.stride, store.page_tokens, store.block_tokens, store.group, store.channels)
    native(
        q_TNH,
        arena_PX,
        (*shape, store.kv_heads, store.bits),
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


def _fits(store: BlockStore, x: Tensor) -> bool:
    """Whether the native kernel takes it: whole chains of eight quads, and groups of whole registers."""
    chains = store.head_size % 32 == 0 and store.block_tokens % 32 == 0
    return (
        chains
        and store.group % 16 == 0
        and store.channels % 16 == 0
        and x.is_cpu
        and x.dtype == torch.float32
    )

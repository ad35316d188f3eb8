"""The obvious PyTorch twin of paged_attention: gather a run's keys and values, attend to them, merge the runs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from headrace.kernels import attention
from headrace.kernels.attention import Queries, State
from headrace.kernels.paged_attention.store import PageStore
from headrace.types import Reads, Run


def write(arena_PX: Tensor, store: PageStore, k_TGH: Tensor, v_TGH: Tensor, slots_T: Tensor) -> None:
    """See the package."""
    keys_PGHT, values_PGTH = store.views(arena_PX)
    page_T, offset_T = slots_T // store.page_tokens, slots_T % store.page_tokens
    keys_PGHT[page_T, :, :, offset_T] = k_TGH.to(store.dtype)
    values_PGTH[page_T, :, offset_T] = v_TGH.to(store.dtype)


def read(arena_PX: Tensor, store: PageStore, pages_B: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """See the package."""
    keys_PGHT, values_PGTH = store.views(arena_PX)
    k_LGH = keys_PGHT[pages_B].permute(0, 3, 1, 2).flatten(0, 1)[:length]
    v_LGH = values_PGTH[pages_B].transpose(1, 2).flatten(0, 1)[:length]
    return k_LGH, v_LGH


def attend(queries: Queries, gather: Callable[[Run], tuple[Tensor, Tensor]], reads: Reads) -> State:
    """Attention of every row over its runs; `gather` gives a run's keys and values, [length, G, H]."""
    q_TNH, positions_T, scale, window = queries
    out_TNH = torch.empty_like(q_TNH, memory_format=torch.contiguous_format)
    wide = torch.promote_types(q_TNH.dtype, torch.float32)
    lse_TN = torch.empty(q_TNH.shape[:2], dtype=wide, device=q_TNH.device)
    for rows, runs in reads.by_rows():
        states = []
        for run in runs:
            k_LGH, v_LGH = gather(run)
            states.append(
                attention.attend(q_TNH[rows], k_LGH, v_LGH, positions_T[rows], run.start, scale, window)
            )
        out_TNH[rows], lse_TN[rows] = attention.merge(states)
    return State(out_TNH, lse_TN)

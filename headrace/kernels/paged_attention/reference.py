"""The obvious PyTorch twin of paged_attention: gather a run's keys and values, attend to them, merge the runs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from headrace.kernels import attention
from headrace.kernels.attention import Queries, State
from headrace.kernels.paged_attention.store import PageStore
from headrace.types import Reads, Run

TOP = 127.0
LEAST = 2.0**-100


def write(arena_PX: Tensor, store: PageStore, k_TGH: Tensor, v_TGH: Tensor, slots_T: Tensor) -> None:
    """See the package."""
    views = store.views(arena_PX)
    page_T, offset_T = slots_T // store.page_tokens, slots_T % store.page_tokens
    if views.key_scales_PGT is not None and views.value_scales_PGT is not None:
        k_TGH, views.key_scales_PGT[page_T, :, offset_T] = quantise(k_TGH)
        v_TGH, views.value_scales_PGT[page_T, :, offset_T] = quantise(v_TGH)
    views.keys_PGHT[page_T, :, :, offset_T] = k_TGH.to(store.dtype)
    views.values_PGTH[page_T, :, offset_T] = v_TGH.to(store.dtype)


def quantise(x_TGH: Tensor) -> tuple[Tensor, Tensor]:
    """int8 codes [T, G, H] and float32 scales [T, G]; each step is one operation in float32."""
    x_TGH = x_TGH.float()
    most_TG = x_TGH.abs().amax(-1)
    top_TG = torch.full_like(most_TG, TOP)
    factor_TG = torch.where(most_TG >= LEAST, top_TG / most_TG, 0.0)
    scale_TG = torch.where(most_TG.isfinite(), most_TG / top_TG, torch.nan)
    codes_TGH = (x_TGH * factor_TG[..., None]).round().nan_to_num(0.0).to(torch.int8)
    return codes_TGH, scale_TG


def read(arena_PX: Tensor, store: PageStore, pages_B: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """See the package."""
    views = store.views(arena_PX)
    k_LGH = views.keys_PGHT[pages_B].permute(0, 3, 1, 2).flatten(0, 1)[:length]
    v_LGH = views.values_PGTH[pages_B].transpose(1, 2).flatten(0, 1)[:length]
    if views.key_scales_PGT is None or views.value_scales_PGT is None:
        return k_LGH, v_LGH
    k_scale_LG = views.key_scales_PGT[pages_B].transpose(1, 2).flatten(0, 1)[:length]
    v_scale_LG = views.value_scales_PGT[pages_B].transpose(1, 2).flatten(0, 1)[:length]
    return k_LGH * k_scale_LG[..., None], v_LGH * v_scale_LG[..., None]


def attend(queries: Queries, gather: Callable[[Run], tuple[Tensor, Tensor]], reads: Reads) -> State:
    """Attention of every row over its runs; `gather` gives a run's keys and values, [length, G, H]."""
    q_TNH, positions_T, scale, window, sink = queries
    out_TNH = torch.empty_like(q_TNH, memory_format=torch.contiguous_format)
    wide = torch.promote_types(q_TNH.dtype, torch.float32)
    lse_TN = torch.empty(q_TNH.shape[:2], dtype=wide, device=q_TNH.device)
    for rows, runs in reads.by_rows():
        states = []
        for run in runs:
            k_LGH, v_LGH = gather(run)
            states.append(
                attention.attend(q_TNH[rows], k_LGH, v_LGH, positions_T[rows], run.start, scale, window, sink)
            )
        out_TNH[rows], lse_TN[rows] = attention.merge(states)
    return State(out_TNH, lse_TN)

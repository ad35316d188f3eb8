"""The obvious PyTorch twin of lora, and the packed layout that kernel.h draws."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK, LANES = 64, 16
"""Outputs per block of `up`; `down` is padded to a multiple of the lanes."""


def padded(width: int) -> int:
    """Numbers that a row of `down` takes."""
    return -(-width // LANES) * LANES


def pack_down(down_RI: Tensor) -> Tensor:
    """[R, I] -> [R, I padded]."""
    return F.pad(down_RI, (0, -down_RI.shape[1] % LANES)).contiguous()


def pack_up(up_OR: Tensor) -> Tensor:
    """One part: [O, R] -> flat, [blocks][R][64]."""
    whole = F.pad(up_OR, (0, 0, 0, -up_OR.shape[0] % BLOCK))
    return whole.view(-1, BLOCK, up_OR.shape[1]).transpose(1, 2).flatten()


def unpack_up(packed: Tensor, ranks: int, outputs: int) -> Tensor:
    """One part: flat -> [O, R]."""
    return packed.view(-1, ranks, BLOCK).transpose(1, 2).reshape(-1, ranks)[:outputs]


def add(
    out_AO: Tensor,
    x_AI: Tensor,
    down: Tensor,
    up: Tensor,
    scale_R: Tensor,
    parts: Sequence[tuple[int, int, int]],
) -> Tensor:
    """The rows of one adapter: out + up (scale * (down x)), summed in float32, or float64 for float64 rows."""
    dtype = torch.promote_types(x_AI.dtype, torch.float32)
    x_AI = x_AI.to(dtype)
    chosen = down.dtype == torch.int64
    hidden_AR = x_AI[:, down] if chosen else x_AI @ down[:, : x_AI.shape[1]].to(dtype).T
    hidden_AR = scale_R.to(dtype) * hidden_AR
    sum_AO, rank, item = out_AO.to(dtype), 0, 0
    if up.dtype == torch.int64:
        return sum_AO.index_add(1, up, hidden_AR).to(out_AO.dtype)
    for ranks, first, outputs in parts:
        items = -(-outputs // BLOCK) * BLOCK * ranks
        up_OR = unpack_up(up[item : item + items], ranks, outputs).to(dtype)
        sum_AO[:, first : first + outputs] += hidden_AR[:, rank : rank + ranks] @ up_OR.T
        rank, item = rank + ranks, item + items
    return sum_AO.to(out_AO.dtype)

"""The obvious PyTorch twin of sparse_add, and the layout that kernel.h says."""

from __future__ import annotations

import torch
from torch import Tensor

MOST_WIDTH = 1 << 16
"""Inputs."""
_DAMAGED = "the sparse part of a weight is damaged in memory: load the model again"


def pack(weight_OI: Tensor, chosen_OI: Tensor) -> tuple[Tensor, Tensor]:
    """Starts, int32 [O + 1], and entries, int32 [E], of the chosen places (bool) of a bfloat16 matrix."""
    starts = torch.zeros(len(weight_OI) + 1, dtype=torch.int32)
    starts[1:] = chosen_OI.sum(1).cumsum(0)
    bits = weight_OI[chosen_OI].view(torch.int16).int() << 16
    return starts, bits | chosen_OI.nonzero()[:, 1].int()


def unpack(starts: Tensor, entries: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs, inputs (int64) and weights (bfloat16) of the entries. Raises ValueError where they are out of range."""
    counts, inputs = starts.diff(), (entries & 0xFFFF).long()
    ordered = int(starts[0]) == 0 and bool((counts >= 0).all()) and int(starts[-1]) == len(entries)
    if not ordered or bool((inputs >= width).any()):
        raise ValueError(_DAMAGED)
    outputs = torch.repeat_interleave(torch.arange(len(counts)), counts.long())
    return outputs, inputs, (entries >> 16).to(torch.int16).view(torch.bfloat16)


def multiply(x_TI: Tensor, starts: Tensor, entries: Tensor) -> Tensor:
    """Rows times the sparse matrix, [T, I] -> [T, O], entry by entry."""
    outputs, inputs, weights = unpack(starts, entries, x_TI.shape[1])
    products_TE = x_TI[:, inputs] * weights.to(x_TI.dtype)
    return torch.zeros(len(x_TI), len(starts) - 1, dtype=x_TI.dtype).index_add_(1, outputs, products_TE)

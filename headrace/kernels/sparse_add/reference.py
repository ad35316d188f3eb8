"""The obvious PyTorch twin of sparse_add, and the layout that kernel.h says."""

from __future__ import annotations

import torch
from torch import Tensor

MOST_WIDTH = 1 << 16
"""Inputs."""
_DAMAGED = "the sparse part of a weight is damaged in memory: load the model again"


def gather(places_E: Tensor, weights_E: Tensor, outputs: int, width: int) -> tuple[Tensor, Tensor]:
    """Starts, int32 [O + 1], and entries, int32 [E], of bfloat16 weights at output * width + input."""
    if (places_E.diff() < 0).any():  # rows mostly come in order
        places_E, order_E = places_E.sort()
        weights_E = weights_E[order_E]
    starts = torch.searchsorted(places_E, torch.arange(outputs + 1) * width).int()
    return starts, weights_E.view(torch.int16).int() << 16 | (places_E % width).int()


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
